"""SAM 2 carries what a detector finds through every frame of a video."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from vfm_ops import op
from vfm_ops.arrow_types import BOX, MASK
from vfm_ops.detect.prompts import split_prompt
from vfm_ops.models.checkpoint import remembered_digest
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import DEFAULT_DETECTOR, DEFAULT_TRACKER

COLUMNS = {
    "track_id": pa.string(),
    "frame_index": pa.int64(),
    "pts_s": pa.float64(),
    "label": pa.string(),
    "box": BOX,
    "mask": MASK,
    "score": pa.float32(),
    "visible": pa.bool_(),
}


class TrackSettings(op.Settings):
    """What to follow, and by which models."""

    prompts: str  # 'person . bicycle .'
    detector: str = DEFAULT_DETECTOR
    threshold: float | None = Field(None, ge=0, le=1)  # None: the detector family's own
    nms_iou: float = Field(0.5, gt=0, le=1)
    model: str = DEFAULT_TRACKER
    detect_every: int = Field(15, gt=0)  # frames between detections
    max_objects: int = Field(64, gt=0)
    chunk_frames: int = Field(256, gt=0)  # a killed run resumes a video within one chunk


class Track(op.VideoOp):
    """Objects with identity, box and mask on every frame, rows of `tracks`; in pixels of the stored frame."""

    name, main, one_thread = "track", "prompts", True
    table = op.Table("tracks", COLUMNS)
    unkeyed = ("chunk_frames",)
    Settings = TrackSettings
    settings: TrackSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.chunk_frames = self.settings.chunk_frames
        self.checkpoints = [
            find_checkpoint(self.settings.detector, "detect"),
            find_checkpoint(self.settings.model, "track"),
        ]

    def digest(self) -> str:
        """Of the weights of both."""
        return " ".join(map(remembered_digest, self.checkpoints))

    @cached_property
    def detector(self) -> _AtThreshold:
        """The detector, loaded."""
        from vfm_ops.detect import load_detector

        return _AtThreshold(load_detector(self.settings.detector, device=self.device), self.settings)

    @cached_property
    def network(self) -> Any:
        """SAM 2, loaded."""
        from vfm_ops.track.load import load_network

        return load_network(self.settings.model, device=self.device)

    def begin(self, video: op.Video) -> Any:
        """A tracker that has seen nothing."""
        from vfm_ops.track.detect_then_track import FOR_DETECTIONS, DetectThenTrack, DetectTrackSettings

        s = self.settings
        least = self.detector.detector.default_threshold if s.threshold is None else s.threshold
        tracker = replace(FOR_DETECTIONS, max_objects=s.max_objects)
        settings = DetectTrackSettings(s.detect_every, least, s.max_objects, tracker=tracker)
        return DetectThenTrack(self.detector, self.network, split_prompt(s.prompts), settings)

    def chunk(self, video: op.Video, state: Any, frames: list[op.VideoFrame]) -> tuple[Any, list[dict[str, Any]]]:
        """The frames' tracks."""
        rows = []
        for frame in frames:
            result = state.step(frame.index, frame.pts_s, np.ascontiguousarray(frame.pixels), frame.cut)
            rows += [self._row(row, video) for row in result.tracks]
        return state, rows

    def dumps(self, state: Any) -> bytes:
        """The memory bank, and who is who."""
        return bytes(state.to_bytes())

    def loads(self, video: op.Video, data: bytes) -> Any:
        """Goes on bit for bit."""
        from vfm_ops.track.detect_then_track import DetectThenTrack

        return DetectThenTrack.from_bytes(self.detector, self.network, data)

    def _row(self, row: Any, video: op.Video) -> dict[str, Any]:
        return {
            "track_id": f"{video.asset_id}:t{row.track_id}",
            "frame_index": row.frame_index,
            "pts_s": row.pts_s,
            "label": row.label,
            "box": row.box.tolist(),
            "mask": row.mask,
            "score": row.score,
            "visible": row.visible,
        }


class _AtThreshold:
    """A detector as detect-then-track calls it, at the op's threshold."""

    def __init__(self, detector: Any, settings: TrackSettings) -> None:
        self.detector, self.settings = detector, settings

    def detect(self, images: Any, prompts: Any) -> list[Any]:
        """See `vfm_ops.track.detect_then_track.BoxDetector`."""
        s = self.settings
        return self.detector.detect(images, prompts, thresholds=s.threshold, nms_iou=s.nms_iou)
