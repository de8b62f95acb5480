"""SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343) and SigLIP 2 (https://arxiv.org/abs/2502.14786)."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import BILINEAR, HALF, EmbeddingFamily, Pixels, TextSide
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def features(model: Any, pixels: Tensor) -> Features:
    """Attention pooling, and the patches: there is no class token."""
    out = model.vision_model(pixel_values=pixels)
    return out.pooler_output, out.last_hidden_state


def text_features(model: Any, ids_BL: Tensor) -> Tensor:
    """Pooled at the last position; its padding is not masked, as in training."""
    return model.text_model(input_ids=ids_BL).pooler_output


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens that the text tower takes."""
    return int((checkpoint.config.get("text_config") or {}).get("max_position_embeddings", 64))


def canonical(text: str, model_type: str) -> str:
    """What a text tower's own preparation does before tokens: SigLIP drops punctuation and case, SigLIP 2 case only."""
    if model_type == "siglip":
        return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
    return text.lower()


# SigLIP 2 reads texts with Gemma's vocabulary.
GEMMA: dict[str, Any] = {"text_config": {"vocab_size": 256000, "bos_token_id": 2, "eos_token_id": 1}}
FIRST: dict[str, Any] = {"text_config": {"bos_token_id": 0, "eos_token_id": 1}}

register(
    EmbeddingFamily(
        name="siglip",
        tasks=("embed", "search by text"),
        features=features,
        model_types={"siglip": Pixels(HALF, HALF), "siglip2": Pixels(HALF, HALF, BILINEAR, naflex=True)},
        text=TextSide(text_features, text_length, canonical),
        cards=(
            ModelCard(
                "google/siglip-base-patch16-224",
                "search by text, better than CLIP at its size",
                APACHE,
                transformers_model("SiglipModel", "SiglipConfig", **FIRST),
            ),
            ModelCard(
                "google/siglip2-base-patch16-naflex",
                "many languages, native aspect ratio",
                APACHE,
                transformers_model("Siglip2Model", "Siglip2Config", **GEMMA),
            ),
        ),
    )
)
