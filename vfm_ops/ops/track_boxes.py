"""A detector's boxes of every frame, tied into tracks; no masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from vfm_ops import op
from vfm_ops.arrow_types import BOX
from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import remembered_digest
from vfm_ops.models.device import device_to_describe
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.shipped import DEFAULT_DETECTOR
from vfm_ops.ops.detect import TileSettings, tile_options

COLUMNS = {
    "track_id": pa.string(),
    "frame_index": pa.int64(),
    "pts_s": pa.float64(),
    "label": pa.string(),
    "box": BOX,
    "score": pa.float32(),
}
# Share of the threshold that a weak detection must reach. ByteTrack's own is a sixth (0.1 of 0.6), of detectors with a closed
# vocabulary; at an open one's thresholds, which are lower, more of what lies that far below is nothing.
WEAK = 1 / 3


class TrackBoxesSettings(op.Settings):
    """What to follow, by which detector and which method."""

    prompts: str  # 'person . bicycle .'
    detector: str = DEFAULT_DETECTOR
    threshold: float | None = Field(None, ge=0, le=1)  # least score to start a track; None: the detector family's own
    low_threshold: float | None = Field(None, ge=0, le=1)  # bytetrack: least score to continue one; None: a third of it
    nms_iou: float = Field(0.5, gt=0, le=1)
    tiles: TileSettings | None = None  # for small things in large pictures
    method: Literal["bytetrack", "ocsort"] = "bytetrack"
    appearance: str | None = None  # embedding model whose vectors of crops count too, such as clip:pocket
    lost_track_buffer: int = Field(30, ge=0)  # frames without a detection before a track ends
    minimum_consecutive_frames: int | None = Field(None, gt=0)  # before a track has an id; None: the method's own
    minimum_iou_threshold: float | None = Field(None, ge=0, le=1)  # of a match by place; None: the method's own
    chunk_frames: int = Field(64, gt=0)  # a killed run resumes a video within one chunk


class TrackBoxes(op.VideoOp):
    """Boxes with identity, where the detector saw them, rows of `box_tracks`; in pixels of the stored frame."""

    name, main, one_thread = "track_boxes", "prompts", True
    table = op.Table("box_tracks", COLUMNS)
    unkeyed = ("chunk_frames",)
    Settings = TrackBoxesSettings
    settings: TrackBoxesSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.chunk_frames = self.settings.chunk_frames
        self.checkpoint = find_checkpoint(self.settings.detector, "detect")

    def digest(self) -> str:
        """Of the detector's weights, and of the embedding model's."""
        digests = [remembered_digest(self.checkpoint)]
        if self.settings.appearance is not None:
            from vfm_ops.embed import describe_embedder

            here = device_to_describe(self.device)
            digests.append(str(describe_embedder(self.settings.appearance, device=here).digest))
        return " ".join(digests)

    @cached_property
    def detector(self) -> Any:
        """The detector, loaded."""
        from vfm_ops.detect import load_detector

        return load_detector(self.settings.detector, device=self.device)

    @cached_property
    def embedder(self) -> Any:
        """The embedding model, loaded; None where appearance does not count."""
        if self.settings.appearance is None:
            return None
        from vfm_ops.embed import load_embedder

        return load_embedder(self.settings.appearance, device=self.device, threads=self.threads)

    @property
    def thresholds(self) -> tuple[float, float]:
        """Least score of a detection that starts a track, and of one that continues it."""
        s = self.settings
        high = self.detector.default_threshold if s.threshold is None else s.threshold
        if s.method == "ocsort":
            return high, high
        low = high * WEAK if s.low_threshold is None else s.low_threshold
        if low > high:
            raise UsageError(f"op track_boxes, setting low_threshold: {low} is above the threshold, {high}")
        return high, low

    def begin(self, video: op.Video) -> Any:
        """A tracker that has seen nothing."""
        s, kind = self.settings, _method(self.settings.method)
        high, _ = self.thresholds
        given = {n: getattr(s, n) for n in ("minimum_consecutive_frames", "minimum_iou_threshold")}
        settings = {n: v for n, v in given.items() if v is not None}
        if s.method == "bytetrack":
            settings["track_activation_threshold"] = high
        return kind(kind.Settings(lost_track_buffer=s.lost_track_buffer, high_conf_det_threshold=high, **settings))

    def chunk(self, video: op.Video, state: Any, frames: list[op.VideoFrame]) -> tuple[Any, list[dict[str, Any]]]:
        """The frames' boxes that belong to a track."""
        s, rows = self.settings, []
        _, low = self.thresholds
        pictures = [np.ascontiguousarray(frame.pixels) for frame in frames]
        options = {"thresholds": low, "nms_iou": s.nms_iou, **tile_options(s.tiles)}
        found = self.detector.detect(pictures, s.prompts, **options)
        for frame, picture, detections in zip(frames, pictures, found):
            if frame.cut:
                state.cut()
            observations = self._observations(picture, detections)
            for track_id, seen in zip(state.update(observations), observations):
                if track_id is not None:
                    rows.append(_row(video, frame, track_id, seen))
        return state, rows

    def dumps(self, state: Any) -> bytes:
        """The tracks, and where their filters are."""
        return json.dumps(state.state()).encode()

    def loads(self, video: op.Video, data: bytes) -> Any:
        """Goes on bit for bit."""
        return _method(self.settings.method).from_state(json.loads(data))

    def _observations(self, rgb: np.ndarray, found: Any) -> list[Any]:
        from vfm_ops.track.appearance import crop_looks
        from vfm_ops.track.associate import Observation

        looks: list[np.ndarray | None] = [None] * len(found)
        if self.embedder is not None:
            looks = crop_looks(self._embed, rgb, found.boxes)
        each = zip(found.boxes, found.labels, found.scores, looks)
        return [Observation(box, label, float(score), None, vector) for box, label, score, vector in each]

    def _embed(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        view = self.embedder.view
        views = [view.apply(np.ascontiguousarray(crop)) for crop in crops]
        return np.asarray(self.embedder.embed_images(views if view.ragged else np.stack(views)))


def _method(name: str) -> Any:
    from vfm_ops.track.bytetrack import ByteTrack
    from vfm_ops.track.ocsort import OCSort

    return {"bytetrack": ByteTrack, "ocsort": OCSort}[name]


def _row(video: op.Video, frame: op.VideoFrame, track_id: int, seen: Any) -> dict[str, Any]:
    return {
        "track_id": f"{video.asset_id}:b{track_id}",
        "frame_index": frame.index,
        "pts_s": frame.pts_s,
        "label": seen.label,
        "box": seen.box.tolist(),
        "score": seen.score,
    }
