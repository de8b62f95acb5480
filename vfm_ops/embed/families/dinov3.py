"""DINOv3 (Siméoni et al. 2025, https://arxiv.org/abs/2508.10104): vision transformers and the ConvNeXts distilled from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import BILINEAR, EmbeddingFamily, Pixels
from vfm_ops.models.cards import ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The class token after the last norm, and the patches without the registers.

    A ConvNeXt has no class token: its mean over the map takes that place, under the same norm, and it has no registers.
    """
    out = model(pixel_values=pixels)
    registers = getattr(model.config, "num_register_tokens", 0)
    return out.pooler_output, out.last_hidden_state[:, 1 + registers :]


LICENCE = "DINOv3 License (Meta's own: commercial use with terms; the hub asks for your agreement)"

register(
    EmbeddingFamily(
        name="dinov3",
        features=features,
        model_types={"dinov3_vit": Pixels(resample=BILINEAR), "dinov3_convnext": Pixels(resample=BILINEAR)},
        cards=(
            ModelCard(
                "facebook/dinov3-vits16-pretrain-lvd1689m",
                "features without labels, small; dense tokens",
                LICENCE,
                transformers_model("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
            ),
            ModelCard(
                "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
                "DINOv3 features from a convolutional network",
                LICENCE,
                transformers_model("DINOv3ConvNextModel", "DINOv3ConvNextConfig"),
            ),
        ),
    )
)
