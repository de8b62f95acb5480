"""Every object of a frame, without prompts: SAM's everything mode, one mask a row."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from vfm_ops import op
from vfm_ops.arrow_types import BOX, MASK
from vfm_ops.models.checkpoint import remembered_digest
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import DEFAULT_TRACKER
from vfm_ops.segment.grid_settings import GridFields

COLUMNS = {
    "box": BOX,  # xyxy, pixels of the stored frame
    "mask": MASK,
    "area": pa.int64(),  # pixels
    "score": pa.float32(),  # predicted IoU
    "stability": pa.float32(),
}


class SegmentSettings(op.Settings, GridFields):
    """The model, and which masks are kept: see `vfm_ops.segment.grid_settings.GridFields`."""

    model: str = DEFAULT_TRACKER


class Segment(op.Op):
    """Masks of everything that a grid of points finds, rows of `segments`, the most confident first."""

    name, main, one_thread = "segment", "model", True
    table = op.Table("segments", COLUMNS)
    Settings = SegmentSettings
    settings: SegmentSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.checkpoint = find_checkpoint(self.settings.model, "segment")

    @cached_property
    def segmenter(self) -> Any:
        """The model, loaded."""
        from vfm_ops.segment.segmenter import load_segmenter

        return load_segmenter(self.settings.model, device=self.device)

    def digest(self) -> str:
        """Of the weights."""
        return remembered_digest(self.checkpoint)

    def run(self, images: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        """images: uint8 (H, W, 3) each."""
        from vfm_ops.segment.automatic import GridSettings, generate_masks

        grid = GridSettings(**self.settings.model_dump(exclude={"model"}))
        return [[_row(mask) for mask in generate_masks(self.segmenter, rgb, grid)] for rgb in images]


def _row(found: Any) -> dict[str, Any]:
    return {
        "box": found.box.tolist(),
        "mask": found.rle,
        "area": found.area,
        "score": found.score,
        "stability": found.stability,
    }
