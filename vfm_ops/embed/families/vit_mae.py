"""Masked autoencoders (He et al. 2022, https://arxiv.org/abs/2111.06377): the encoder, with nothing masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import BILINEAR, EmbeddingFamily, Pixels
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The class token and the patches. Nothing is masked, but the encoder still orders patches by its noise: an ascending
    one keeps them in place."""
    import torch

    count = model.embeddings.position_embeddings.shape[1] - 1
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), count)
    hidden = model(pixel_values=pixels, noise=noise).last_hidden_state
    return hidden[:, 0], hidden[:, 1:]


HUGE: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "patch_size": 14,
}
PURPOSE = "a start for fine-tuning; poor for kNN"

register(
    EmbeddingFamily(
        name="vit-mae",
        features=features,
        model_types={"vit_mae": Pixels(resample=BILINEAR)},
        settings={"mask_ratio": 0.0},
        may_lack=("pooler.",),
        cards=(
            ModelCard("facebook/vit-mae-base", PURPOSE, APACHE, transformers_model("ViTMAEModel", "ViTMAEConfig")),
            ModelCard(
                "facebook/vit-mae-huge", PURPOSE, APACHE, transformers_model("ViTMAEModel", "ViTMAEConfig", **HUGE)
            ),
        ),
    )
)
