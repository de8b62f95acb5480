"""BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254) and data2vec vision: masked image modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import EmbeddingFamily, Pixels
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vfm_ops.embed.family import Features


def features(model: Any, pixels: Tensor) -> Features:
    """The model's own pooling (a mean, in fine-tuned ones), and the patches."""
    out = model(pixel_values=pixels)
    return out.pooler_output, out.last_hidden_state[:, 1:]


register(
    EmbeddingFamily(
        name="beit",
        features=features,
        model_types={"beit": Pixels(), "data2vec-vision": Pixels()},
        cards=(
            ModelCard(
                "microsoft/beit-base-patch16-224",
                "masked image modelling, fine-tuned",
                APACHE,
                transformers_model("BeitModel", "BeitConfig"),
            ),
        ),
    )
)
