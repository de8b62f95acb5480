"""Vision transformers trained with labels, or as DeiT and MSN: the class token of the last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import BILINEAR, HALF, EmbeddingFamily, Pixels
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The class token and the patches; transformers' pooler is not read, and many checkpoints have none."""
    hidden = model(pixel_values=pixels).last_hidden_state
    return hidden[:, 0], hidden[:, 1:]


register(
    EmbeddingFamily(
        name="vit",
        features=features,
        model_types={"vit": Pixels(HALF, HALF, BILINEAR), "deit": Pixels(), "vit_msn": Pixels()},
        may_lack=("pooler.",),
        cards=(
            ModelCard(
                "google/vit-base-patch16-224",
                "supervised ViT-B/16 features",
                APACHE,
                transformers_model("ViTModel", "ViTConfig"),
            ),
        ),
    )
)
