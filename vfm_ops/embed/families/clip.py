"""CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): images and texts in one space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import CLIP_MEAN, CLIP_STD, EmbeddingFamily, Pixels, TextSide
from vfm_ops.models.cards import APACHE, OURS, POCKET_NOTE, ModelCard, shipped_model, transformers_model
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The projected class token, and the patches of the last layer."""
    out = model.vision_model(pixel_values=pixels)
    return model.visual_projection(out.pooler_output), out.last_hidden_state[:, 1:]


def text_features(model: Any, ids_BL: Tensor) -> Tensor:
    """CLIP's text is causal and pooled at its end token: what pads after it changes nothing, so no mask is needed."""
    return model.text_projection(model.text_model(input_ids=ids_BL).pooler_output)


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens that the text tower takes."""
    return int((checkpoint.config.get("text_config") or {}).get("max_position_embeddings", 77))


LARGE: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    },
}

register(
    EmbeddingFamily(
        name="clip",
        tasks=("embed", "search by text"),
        features=features,
        model_types={"clip": Pixels(CLIP_MEAN, CLIP_STD)},
        text=TextSide(text_features, text_length),
        cards=(
            ModelCard(
                "pocket",
                f"search by text; {POCKET_NOTE}",
                APACHE,
                shipped_model("clip", "CLIPModel", "CLIPConfig"),
                package=OURS,
            ),
            ModelCard(
                "openai/clip-vit-base-patch32",
                "search by text, fast",
                "MIT",
                transformers_model("CLIPModel", "CLIPConfig"),
            ),
            ModelCard(
                "openai/clip-vit-large-patch14",
                "search by text, accurate",
                "MIT",
                transformers_model("CLIPModel", "CLIPConfig", **LARGE),
            ),
        ),
    )
)
