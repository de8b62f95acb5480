"""SAM 2 and 2.1 (Ravi et al. 2024, https://arxiv.org/abs/2408.00714): masks in images, objects through videos."""

from __future__ import annotations

from vfm_ops.models.cards import APACHE, OURS, POCKET_NOTE, ModelCard, shipped_model, transformers_model
from vfm_ops.models.registry import Family, register

register(
    Family(
        name="sam2",
        tasks=("segment", "track"),
        model_types=("sam2", "sam2_video"),
        unfit={"track": {"sam2": "a SAM 2 image checkpoint, without the memory modules that tracking needs"}},
        cards=(
            ModelCard(
                "pocket",
                f"masks from boxes and clicks, followed through video; {POCKET_NOTE}",
                APACHE,
                shipped_model("sam2", "Sam2VideoModel", "Sam2VideoConfig"),
                package=OURS,
            ),
            ModelCard(
                "facebook/sam2.1-hiera-tiny",
                "masks in images, objects through videos",
                APACHE,
                transformers_model("Sam2VideoModel", "Sam2VideoConfig"),
            ),
        ),
    )
)
