"""DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193), with and without registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import EmbeddingFamily, Pixels
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The class token after the last norm, and the patches without the registers."""
    out = model(pixel_values=pixels)
    registers = getattr(model.config, "num_register_tokens", 0)
    return out.pooler_output, out.last_hidden_state[:, 1 + registers :]


BASE: dict[str, Any] = {"patch_size": 14, "image_size": 518}
GIANT: dict[str, Any] = BASE | {
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "use_swiglu_ffn": True,
}

register(
    EmbeddingFamily(
        name="dinov2",
        features=features,
        model_types={"dinov2": Pixels(), "dinov2_with_registers": Pixels()},
        cards=(
            ModelCard(
                "facebook/dinov2-base",
                "features without labels; dense tokens",
                APACHE,
                transformers_model("Dinov2Model", "Dinov2Config", **BASE),
            ),
            ModelCard(
                "facebook/dinov2-giant",
                "the strongest DINOv2 features",
                APACHE,
                transformers_model("Dinov2Model", "Dinov2Config", **GIANT),
            ),
        ),
    )
)
