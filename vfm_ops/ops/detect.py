"""Open-vocabulary detection: boxes of what the prompts name, on each frame."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from vfm_ops import op
from vfm_ops.arrow_types import BOX
from vfm_ops.detect.loading import check_multi_label
from vfm_ops.models.checkpoint import remembered_digest
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import DEFAULT_DETECTOR

COLUMNS = {
    "model": pa.string(),
    "prompt": pa.string(),
    "label": pa.string(),
    "score": pa.float32(),
    "box": BOX,
}


class TileSettings(op.Settings):
    """Overlapping tiles of a picture: see `vfm_ops.detect.tiles.Tiles`."""

    size: int = Field(ge=16)  # side, in pixels of the stored frame
    overlap: float = Field(0.25, ge=0, lt=1)  # share of a side that neighbours have in common
    whole: bool = True  # look at the whole picture too


class DetectSettings(op.Settings):
    """What to find, and by which model."""

    prompts: str  # 'person . bicycle .'
    model: str = DEFAULT_DETECTOR
    threshold: float | None = Field(None, ge=0, le=1)  # None: the model family's own
    nms_iou: float = Field(0.5, gt=0, le=1)
    tiles: TileSettings | None = None  # for small things in large pictures
    multi_label: bool = (
        False  # yolo-world: a box under every prompt that it scores enough for, not under the best alone
    )


class Detect(op.Op):
    """Boxes with exactly one prompt each, rows of `detections`; xyxy in pixels of the stored frame."""

    name, main, one_thread = "detect", "prompts", True
    table = op.Table("detections", COLUMNS, id="detection_id", prefix="d")
    Settings = DetectSettings
    settings: DetectSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.checkpoint = find_checkpoint(self.settings.model, "detect")
        check_multi_label(self.settings.model, self.settings.multi_label)

    @cached_property
    def detector(self) -> Any:
        """The model, loaded."""
        from vfm_ops.detect import load_detector

        return load_detector(self.settings.model, device=self.device, multi_label=self.settings.multi_label)

    def digest(self) -> str:
        """Of the weights."""
        return remembered_digest(self.checkpoint)

    def run(self, images: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        """images: uint8 (H, W, 3) each."""
        s = self.settings
        options = {"thresholds": s.threshold, "nms_iou": s.nms_iou, **tile_options(s.tiles)}
        results = self.detector.detect(list(images), s.prompts, **options)
        return [
            [
                {"model": s.model, "prompt": label, "label": label, "score": float(score), "box": box.tolist()}
                for label, score, box in zip(found.labels, found.scores, found.boxes)
            ]
            for found in results
        ]


def tile_options(settings: TileSettings | None) -> dict[str, Any]:
    """As a detector's `detect` takes them; none where a picture is looked at as a whole."""
    from vfm_ops.detect.tiles import Tiles

    return {} if settings is None else {"tiles": Tiles(**settings.model_dump())}
