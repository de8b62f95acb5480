"""Which frames of a video are kept: pure functions from times, keyframes and shots to frame indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vfm_ops.errors import UsageError

MODES = ("all", "fps", "every_n", "keyframes", "per_shot")


@dataclass(frozen=True)
class Sampling:
    """How to sample a video.

    mode: `all`; `fps` (the frame nearest to each point of a time grid); `every_n`; `keyframes`; `per_shot` (k frames
        spread in each shot). fps, n, k: the modes' numbers. max_frames: cap a video, thinned evenly.
    """

    mode: Literal["all", "fps", "every_n", "keyframes", "per_shot"] = "fps"
    fps: float = 1.0
    n: int = 30
    k: int = 3
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"sampling.mode: {self.mode!r} is unknown; use one of {', '.join(MODES)}.")
        for name in ("fps", "n", "k"):
            if not getattr(self, name) > 0:
                raise UsageError(f"sampling.{name} must be above zero, not {getattr(self, name)}.")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"sampling.max_frames must be at least 1, not {self.max_frames}.")

    @property
    def needs_shots(self) -> bool:
        return self.mode == "per_shot"

    def indices(
        self, pts_s: np.ndarray, keyframes: np.ndarray, shots: Sequence[tuple[int, int]] | None = None
    ) -> np.ndarray:
        """Frame indices to keep, int64, ascending and unique.

        pts_s: float64 (N,), ascending seconds. keyframes: frame indices. shots: (first, last) frames, both included;
        needed by `per_shot`.
        """
        count = len(pts_s)
        if self.mode == "all":
            chosen = np.arange(count)
        elif self.mode == "fps":
            chosen = sample_fps(pts_s, self.fps)
        elif self.mode == "every_n":
            chosen = np.arange(0, count, self.n)
        elif self.mode == "keyframes":
            chosen = np.unique(np.asarray(keyframes, np.int64))
        else:
            chosen = sample_shots(shots if shots is not None else [(0, count - 1)], self.k)
        return thin_evenly(chosen.astype(np.int64), self.max_frames)


def sample_fps(pts_s: np.ndarray, fps: float) -> np.ndarray:
    """The frame nearest to each of the times 0, 1/fps, 2/fps, ... up to the last frame's, without repeats.

    Right for variable frame rate: times decide, not counts. Of two equally near frames the earlier is taken.
    """
    if not len(pts_s):
        return np.zeros(0, np.int64)
    start = pts_s[0]
    # The slack forgives the rounding of (N - 1) / fps; without it the last point of an exact grid comes and goes.
    steps = int(np.floor((pts_s[-1] - start) * fps + 1e-6))
    grid = start + np.arange(steps + 1) / fps
    after = np.clip(np.searchsorted(pts_s, grid), 0, len(pts_s) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(grid - pts_s[before] <= pts_s[after] - grid, before, after)
    return np.unique(nearest).astype(np.int64)


def sample_shots(shots: Sequence[tuple[int, int]], k: int) -> np.ndarray:
    """k frames in the middles of k equal parts of each shot (first, last); all of them when it has no more than k."""
    chosen = [np.zeros(0, np.int64)]
    for first, last in shots:
        length = last - first + 1
        parts = min(k, length)
        chosen.append(first + ((2 * np.arange(parts) + 1) * length) // (2 * parts))
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def thin_evenly(indices: np.ndarray, at_most: int | None) -> np.ndarray:
    """At most `at_most` of the indices, spread evenly, the first and last kept (the middle one when it is 1)."""
    if at_most is None or len(indices) <= at_most:
        return indices
    if at_most == 1:
        return indices[len(indices) // 2 : len(indices) // 2 + 1]
    return indices[np.rint(np.linspace(0, len(indices) - 1, at_most)).astype(np.int64)]
