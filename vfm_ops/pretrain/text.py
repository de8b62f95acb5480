"""Text for CLIP and SigLIP: a tokenizer from a directory or trained on the captions, and a text tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.torch_state import keeps_torch_state

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<bos>", "<eos>"
Tokenize = Callable[[str, int], np.ndarray]


def train_tokenizer(captions: Iterable[str], vocabulary: int = 8192) -> Any:
    """A lower-case byte-pair tokenizer learnt from the captions (ids: pad 0, unknown 1, begin 2, end 3), which puts begin and
    end around each caption as a published one does.

    Merges of equal frequency come in another order at each call: save the tokenizer with the run and load it to resume.

    Raises UsageError when there is no caption with a word in it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 2), (END, 3)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, UNKNOWN, BEGIN, END], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() <= 4:
        raise UsageError(
            "no captions to train a tokenizer on: clip and siglip need a text column; name it with caption_column"
        )
    return tokenizer


def load_tokenizer(directory: str | Path) -> Any:
    """The `tokenizer.json` of a transformers directory, or one that `save_tokenizer` wrote."""
    from tokenizers import Tokenizer

    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise WeightsUnavailable(f"no tokenizer in {directory}: put the model's tokenizer.json there")
    return Tokenizer.from_file(str(path))


def save_tokenizer(tokenizer: Any, directory: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
    import json

    Path(directory).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(directory) / "tokenizer.json"))
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": BEGIN, "eos_token": END}
    present = {key: token for key, token in special.items() if tokenizer.token_to_id(token) is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **present}
    (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def tokenize_with(tokenizer: Any) -> Tokenize:
    """A function (caption, length) -> int64 (length,): begin, words, end, pads; a longer caption loses its tail, not its
    end."""
    pad = tokenizer.token_to_id(PAD)

    def tokenize(caption: str, length: int) -> np.ndarray:
        ids = tokenizer.encode(caption).ids
        ids = ids[: length - 1] + ids[-1:] if len(ids) > length else ids
        out = np.full(length, pad if pad is not None else ids[-1], np.int64)
        out[: len(ids)] = ids
        return out

    return tokenize


def build_text_tower(
    family: str, vocabulary: int, length: int, width: int, depth: int, heads: int, projection: int
) -> Any:
    """A transformers text model of our sizes, randomly initialised. family: `clip` (causal, pooled at the end token, linear
    projection without bias) or `siglip` (bidirectional, pooled at the last position, projection is its head)."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, SiglipTextConfig, SiglipTextModel

    shared = {
        "vocab_size": vocabulary, "max_position_embeddings": length, "hidden_size": width, "num_hidden_layers": depth,
        "num_attention_heads": heads, "intermediate_size": 4 * width, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    if family == "clip":
        return CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=projection, **shared))
    return SiglipTextModel(SiglipTextConfig(projection_size=projection, **shared))


@keeps_torch_state()
def load_text_tower(family: str, directory: str | Path) -> Any:
    """The text tower of a local transformers CLIP or SigLIP directory; the network is never asked."""
    from transformers import AutoConfig, CLIPModel, CLIPTextModelWithProjection, SiglipModel, SiglipTextModel

    if not (Path(directory) / "config.json").is_file():
        raise WeightsUnavailable(f"no text model in {directory}: a transformers directory with config.json is wanted")
    kind = AutoConfig.from_pretrained(str(directory), local_files_only=True).model_type
    if kind not in (family, f"{family}_text_model"):
        raise UsageError(f"{directory} holds a {kind} model, which has no {family} text tower")
    if kind == "siglip":
        return SiglipModel.from_pretrained(str(directory), local_files_only=True).text_model
    if kind == "siglip_text_model":
        return SiglipTextModel.from_pretrained(str(directory), local_files_only=True)
    if kind == "clip_text_model":
        return CLIPTextModelWithProjection.from_pretrained(str(directory), local_files_only=True)
    # Through the whole model: its projection's width, not the tower's config's, is the checkpoint's.
    whole = CLIPModel.from_pretrained(str(directory), local_files_only=True)
    config = whole.config.text_config
    config.projection_dim = whole.config.projection_dim
    tower = CLIPTextModelWithProjection(config)
    tower.text_model.load_state_dict(whole.text_model.state_dict())
    tower.text_projection.load_state_dict(whole.text_projection.state_dict())
    return tower


def text_features(tower: Any, token_BT: Any) -> Any:
    """(B, T) ids -> (B, D), not normalised."""
    out = tower(input_ids=token_BT)
    return out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
