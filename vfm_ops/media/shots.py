"""Shots: runs of frames between cuts. Detectors are fed thumbnails in chunks and hold a bounded number of them.

`ContentDetector` compares neighbours in HSV, as PySceneDetect's does; `TransNetV2Detector` runs the published network with
the weights that its package ships. Each sees every frame as uint8 RGB at the size for which its threshold was found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.media.cuts import Cut
from vfm_ops.media.transnet import TransNetV2Detector, transnet_weights

CONTENT_THRESHOLD = 27.0
CONTENT_WIDTH = 256  # PySceneDetect's DEFAULT_MIN_WIDTH: what it shrinks a frame to before its ContentDetector sees it
SMALL_HEIGHT, SMALL_WIDTH = 27, 48  # what TransNetV2 was trained on
MIN_SHOT_FRAMES = 10


@dataclass(frozen=True)
class Shot:
    """One shot. start_frame, end_frame: first and last frame, both included; start_s: time of the first frame; end_s: of
    the next shot's first frame (or the end of the video). score: of the cut that starts it, 1 for the first shot.
    motion: mean absolute luma difference between neighbouring thumbnails of the shot, in [0, 1].
    """

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    score: float
    motion: float


class ShotDetector(Protocol):
    """Fed every frame's thumbnail in order, then finished; one instance serves one video."""

    name: str
    thumbnail_width: int | None  # None: 48 x 27, aspect ratio ignored; else see `wide_size`

    def feed(self, thumbnails: np.ndarray) -> None:
        """thumbnails: uint8 (n, h, w, 3), the next n frames."""
        ...

    def finish(self) -> list[Cut]:
        """All cuts, ascending."""
        ...


def wide_size(width: int, height: int, most: int = CONTENT_WIDTH) -> tuple[int, int]:
    """(width, height) to which PySceneDetect shrinks a frame: `most` pixels wide, or as it is where it is no wider."""
    return (most, max(1, round(height * most / width))) if width > most else (width, height)


class ContentDetector:
    """A cut where the mean absolute HSV difference to the frame before reaches `threshold` (0 to 255; hue in half degrees).

    PySceneDetect's content-aware rule, equal weights, on the pixels that it has: a threshold holds for one size only, since
    shrinking averages texture away and noise with it. min_length: frames that a shot has at least; a cut that comes sooner
    is dropped.
    """

    name = "content"
    thumbnail_width: int | None = CONTENT_WIDTH

    def __init__(self, threshold: float = CONTENT_THRESHOLD, min_length: int = MIN_SHOT_FRAMES) -> None:
        self._threshold, self._min_length = threshold, min_length
        self._previous: np.ndarray | None = None
        self._frame, self._last_cut, self._cuts = 0, 0, []  # type: ignore[var-annotated]

    def feed(self, thumbnails: np.ndarray) -> None:
        """thumbnails: uint8 (n, h, w, 3), the next n frames."""
        for thumbnail in thumbnails:
            hsv = cv2.cvtColor(np.ascontiguousarray(thumbnail), cv2.COLOR_RGB2HSV)
            if self._previous is not None:
                delta = cv2.norm(hsv, self._previous, cv2.NORM_L1) / hsv.size
                if delta >= self._threshold and self._frame - self._last_cut >= self._min_length:
                    self._cuts.append(Cut(self._frame - 1, min(1.0, delta / 255.0)))
                    self._last_cut = self._frame
            self._previous = hsv
            self._frame += 1

    def finish(self) -> list[Cut]:
        """All cuts, ascending."""
        return self._cuts


class MotionMeter:
    """Mean absolute luma difference (Rec. 601, in [0, 1]) of each thumbnail to the one before; one float a frame.

    Always at 48 x 27, so that a bound on motion means the same with every detector.
    """

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None
        self._differences: list[np.ndarray] = []

    def feed(self, thumbnails: np.ndarray) -> None:
        """thumbnails: uint8 (n, h, w, 3), the next n frames."""
        if not len(thumbnails):
            return
        if thumbnails.shape[1:3] != (SMALL_HEIGHT, SMALL_WIDTH):
            size = SMALL_WIDTH, SMALL_HEIGHT
            thumbnails = np.stack([cv2.resize(t, size, interpolation=cv2.INTER_AREA) for t in thumbnails])
        luma = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255.0
        before = luma[:1] if self._previous is None else self._previous
        joined = np.concatenate([before, luma])
        self._differences.append(np.abs(np.diff(joined, axis=0)).mean(axis=(1, 2)))
        self._previous = luma[-1:]

    def differences(self) -> np.ndarray:
        """float32 (N,): entry i compares frame i with i - 1; entry 0 is 0."""
        return np.concatenate([np.zeros(0, np.float32), *self._differences])


def shots_from_cuts(cuts: list[Cut], pts_s: np.ndarray, duration_s: float, differences: np.ndarray) -> list[Shot]:
    """Shots of a video of N frames. pts_s: float64 (N,). differences: float32 (N,), from MotionMeter."""
    count = len(pts_s)
    cuts = [cut for cut in cuts if 0 <= cut.frame < count - 1]
    starts = [0] + [cut.frame + 1 for cut in cuts]
    scores = [1.0] + [cut.score for cut in cuts]
    shots = []
    for number, (start, score) in enumerate(zip(starts, scores)):
        end = starts[number + 1] - 1 if number + 1 < len(starts) else count - 1
        end_s = float(pts_s[end + 1]) if end + 1 < count else duration_s
        inside = differences[start + 1 : end + 1]
        motion = float(inside.mean()) if len(inside) else 0.0
        shots.append(Shot(start, end, float(pts_s[start]), end_s, score, motion))
    return shots


def detect_shots(
    thumbnails: Iterable[np.ndarray], pts_s: np.ndarray, duration_s: float, detector: ShotDetector
) -> list[Shot]:
    """Feed a stream of thumbnail chunks, uint8 (n, h, w, 3) as the detector wants them, and return the video's shots.

    Fewer thumbnails than times (a damaged video): the shots end with the thumbnails.
    """
    motion = MotionMeter()
    for chunk in thumbnails:
        detector.feed(chunk)
        motion.feed(chunk)
    differences = motion.differences()
    seen = min(len(differences), len(pts_s))
    if not seen:
        return []
    end_s = duration_s if seen == len(pts_s) else float(pts_s[seen])
    return shots_from_cuts(detector.finish(), pts_s[:seen], end_s, differences)


def shot_detector(
    name: str = "auto", device: str = "cpu", threshold: float | None = None, min_length: int | None = None
) -> ShotDetector:
    """`transnetv2`, `content`, or `auto` (TransNetV2 where its package is installed).

    threshold: None is the detector's own. min_length: frames, of the content detector; None is its own. Raises UsageError
    for another name, WeightsUnavailable for `transnetv2` without the package.
    """
    if name == "auto":
        name = "content" if transnet_weights() is None else "transnetv2"
    if name == "content":
        length = MIN_SHOT_FRAMES if min_length is None else min_length
        return ContentDetector(CONTENT_THRESHOLD if threshold is None else threshold, length)
    if name == "transnetv2":
        return TransNetV2Detector(device) if threshold is None else TransNetV2Detector(device, threshold)
    raise UsageError(f"shots.detector: {name!r} is unknown; use auto, transnetv2 or content.")
