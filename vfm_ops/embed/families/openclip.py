"""OpenCLIP (https://github.com/mlfoundations/open_clip): CLIP trained on open data, with its own layout of files."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from vfm_ops.embed.family import EmbeddingFamily, TextSide, Tokenize
from vfm_ops.errors import UsageError
from vfm_ops.models.cache import remembered_repository
from vfm_ops.models.cards import ModelCard, transformers_model
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vfm_ops.embed.family import Features

MISSING = "openclip models need open_clip_torch: pip install 'vfm-pipelines[openclip]'"


def load(checkpoint: Checkpoint) -> nn.Module:
    """The whole model, built by open_clip from the folder's settings."""
    from vfm_ops.models.weights import fit, read_state_dict

    try:
        from open_clip.model import CLIP, CustomTextCLIP
    except ImportError as error:
        raise UsageError(MISSING) from error

    settings = dict(checkpoint.config.get("model_cfg") or {})
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings.get("text_cfg", {})
    model = (CustomTextCLIP if custom else CLIP)(**settings)
    fit(model, read_state_dict(*checkpoint.weights), checkpoint.folder, str(checkpoint.config))
    return model.eval()


def features(model: Any, pixels: Tensor) -> Features:
    """open_clip's own image features; it hands out no patches, so the one token is the image."""
    pooled = model.encode_image(pixels)
    return pooled, pooled[:, None]


def text_features(model: Any, ids_BL: Tensor) -> Tensor:
    """open_clip's own text features."""
    return model.encode_text(ids_BL)


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens that the text tower takes."""
    return int(checkpoint.config["model_cfg"].get("text_cfg", {}).get("context_length", 77))


def tokenizer(checkpoint: Checkpoint, length: int) -> Tokenize:
    """open_clip's own vocabulary, or that of the Hugging Face tokenizer that the settings name."""
    text = checkpoint.config["model_cfg"].get("text_cfg", {})
    if "hf_tokenizer_name" in text:
        from open_clip.tokenizer import HFTokenizer

        tokenize: Any = HFTokenizer(str(checkpoint.folder), context_length=length, **text.get("tokenizer_kwargs", {}))
    else:
        from open_clip.tokenizer import SimpleTokenizer

        tokenize = SimpleTokenizer(context_length=length)
    return lambda texts: tokenize(texts).numpy().astype(np.int64)


def repository(name: str) -> str:
    """The hub repository of ARCHITECTURE/TAG; open_clip's registry is asked once."""
    if name == CARD:
        return "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"  # so that the card can be told without the package
    return remembered_repository("openclip", name, _ask_openclip)


def _ask_openclip(name: str) -> str:
    if importlib.util.find_spec("open_clip") is None:
        raise UsageError(f"openclip:{name} needs the package open_clip_torch: pip install 'vfm-pipelines[openclip]'")
    import open_clip

    architecture, _, tag = name.partition("/")
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not tags:
            raise UsageError(f"open_clip knows no pretrained {architecture!r}: give ARCHITECTURE/TAG or a folder")
        raise UsageError(f"open_clip's {architecture} has no weights {tag!r}: use one of {', '.join(tags[:8])}")
    repo = str(config.get("hf_hub", "")).strip("/")
    if not repo:
        raise UsageError(f"openclip:{name} is not on the hub: download it and give openclip:/path/to/folder")
    return repo


CARD = "ViT-B-32/laion2b_s34b_b79k"

register(
    EmbeddingFamily(
        name="openclip",
        tasks=("embed", "search by text"),
        layout="openclip",
        features=features,
        load=load,
        text=TextSide(text_features, text_length, tokenizer=tokenizer),
        repository=repository,
        # The architecture is CLIP's own, so it is counted without the package.
        cards=(ModelCard(CARD, "CLIP trained on open data", "MIT", transformers_model("CLIPModel", "CLIPConfig")),),
    )
)
