"""ResNet and ConvNeXt as transformers saves them: the mean over the last map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import EmbeddingFamily, Pixels
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The pooled map, and its cells in row order."""
    out = model(pixel_values=pixels)
    return out.pooler_output.flatten(1), out.last_hidden_state.flatten(2).transpose(1, 2)


register(
    EmbeddingFamily(
        name="resnet",
        features=features,
        model_types={"resnet": Pixels(), "convnext": Pixels(), "convnextv2": Pixels()},
        cards=(
            ModelCard(
                "microsoft/resnet-50",
                "supervised convolutional features",
                APACHE,
                transformers_model("ResNetModel", "ResNetConfig"),
            ),
        ),
    )
)
