"""Prompts -> embeddings, with CLIP's text encoder (ViT-B/32 in the published models)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models.resolve import locate
from vfm_ops.models.weights import load_transformers

CLIP = "openai/clip-vit-base-patch32"
# Every CLIP text model has attention heads of 64 channels.
HEAD_CHANNELS = 64
Tokenize = Callable[[list[str]], Tensor]


class TextEncoder:
    """Embeds prompts once and keeps them: a corpus asks for the same few words again and again."""

    def __init__(self, model: Any, tokenize: Tokenize) -> None:
        self.model = model
        self.tokenize = tokenize
        self._known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, prompts: list[str]) -> Tensor:
        """L2-normalised embeddings, float32 (N, D), on the model's device."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._known]
        if new:
            tokens = self.tokenize(new).to(self.model.device)
            embeds = self.model(input_ids=tokens).text_embeds.float()
            self._known.update(zip(new, normalize(embeds, dim=-1)))
        return torch.stack([self._known[p] for p in prompts])


def load_text_encoder(weights: dict[str, Tensor], folder: Path, device: torch.device) -> TextEncoder:
    """The encoder from the checkpoint's own weights, else from `folder`/text_encoder, else CLIP ViT-B/32 of the hub.

    Its tokenizer comes from `folder`/tokenizer or `folder`/text_encoder, else from the hub's cache, else from the
    open_clip_torch package, which ships CLIP's vocabulary. Raises WeightsUnavailable when there is none.
    """
    from transformers import CLIPTextModelWithProjection

    if weights:
        model = text_model_from(weights)
    elif (folder / "text_encoder").is_dir():
        model = load_transformers(CLIPTextModelWithProjection, folder / "text_encoder")
    else:
        model = load_transformers(CLIPTextModelWithProjection, locate("clip", CLIP).folder)
    window = int(model.config.max_position_embeddings)
    return TextEncoder(model.eval().to(device), load_tokenizer(folder, window))


def text_model_from(weights: dict[str, Tensor]) -> Any:
    """A CLIP text model whose config is read from the weights' shapes."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    prefix = "text_model.encoder.layers."
    try:
        vocabulary, width = weights["text_model.embeddings.token_embedding.weight"].shape
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=weights[f"{prefix}0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=1 + max(int(k.split(".")[3]) for k in weights if k.startswith(prefix)),
            num_attention_heads=max(1, width // HEAD_CHANNELS),
            max_position_embeddings=weights["text_model.embeddings.position_embedding.weight"].shape[0],
            projection_dim=weights["text_projection.weight"].shape[0],
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
        model = CLIPTextModelWithProjection(config)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise UsageError(
            f"the checkpoint's text encoder is no CLIP text model: {str(error).splitlines()[0]}"
        ) from error
    return model


def load_tokenizer(folder: Path, window: int) -> Tokenize:
    """A function from texts to padded token ids, long (N, L); a text longer than the window is refused, not cut."""
    from transformers import CLIPTokenizerFast

    for place in (folder / "tokenizer", folder / "text_encoder", folder):
        if (place / "tokenizer.json").is_file() or (place / "vocab.json").is_file():
            return _checked(CLIPTokenizerFast.from_pretrained(place, local_files_only=True), window)
    try:
        return _checked(CLIPTokenizerFast.from_pretrained(locate("clip", CLIP).folder, local_files_only=True), window)
    except WeightsUnavailable as error:
        if importlib.util.find_spec("open_clip") is None:
            raise WeightsUnavailable(
                f"yolo-world: no tokenizer in {folder}/tokenizer; put CLIP's tokenizer.json there, or run "
                "`pip install open_clip_torch`, which ships it"
            ) from error
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer(context_length=window)

    def tokenize(texts: list[str]) -> Tensor:
        for text in texts:
            _check_length(text, len(simple.encode(text)) + 2, window)
        return simple(texts)

    return tokenize


def _checked(tokenizer: Any, window: int) -> Tokenize:
    def tokenize(texts: list[str]) -> Tensor:
        for text, ids in zip(texts, tokenizer(texts)["input_ids"]):
            _check_length(text, len(ids), window)
        return tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    return tokenize


def _check_length(text: str, count: int, window: int) -> None:
    if count > window:
        raise UsageError(f"the prompt {text[:60]!r} has {count} tokens; {window} fit yolo-world's text encoder")
