"""Segment Anything (Kirillov et al. 2023, https://arxiv.org/abs/2304.02643): images only."""

from __future__ import annotations

from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import Family, register

HUGE = {
    "vision_config": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    }
}

register(
    Family(
        name="sam",
        tasks=("segment",),
        model_types=("sam",),
        cards=(
            ModelCard(
                "facebook/sam-vit-base",
                "masks from points and boxes",
                APACHE,
                transformers_model("SamModel", "SamConfig"),
            ),
            ModelCard(
                "facebook/sam-vit-huge",
                "masks from points and boxes, accurate",
                APACHE,
                transformers_model("SamModel", "SamConfig", **HUGE),
            ),
        ),
    )
)
