"""What detect-then-track gives for a frame: rows as the `tracks` and `detections` tables have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vfm_ops.track.masks import Rle


@dataclass(frozen=True)
class TrackRow:
    """One object on one frame. box: xyxy float32; where the object is out of sight it is where it should be, mask is
    None and visible False. score: 0-1, the probability that it is there times the mask's predicted IoU."""

    track_id: int
    frame_index: int
    pts_s: float
    label: str
    box: np.ndarray
    mask: Rle | None
    score: float
    visible: bool


@dataclass(frozen=True)
class DetectionRow:
    """One box of a key frame. track_id: the track that it belongs to, None when it started none."""

    frame_index: int
    pts_s: float
    label: str
    score: float
    box: np.ndarray
    track_id: int | None


@dataclass(frozen=True)
class FrameResult:
    """What one frame gave. is_key: whether the detector ran on it."""

    tracks: list[TrackRow]
    detections: list[DetectionRow]
    is_key: bool
