"""OC-SORT (Cao et al., CVPR 2023, https://arxiv.org/abs/2203.14360): what was observed counts more than what was predicted.

Momentum (OCM): a match along the direction in which a track was seen to move scores higher. Recovery (OCR): a second
round compares detections with where tracks were last seen. Re-update (ORU): when a track comes back, its filter is run
again over a straight line between the two sightings, so that the errors of the time out of sight are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.track.box_tracker import BoxTrack, BoxTracker, BoxTrackerSettings, FrameDetections
from vfm_ops.track.kalman import CENTRE_AREA_RATIO

_EPS = 1e-6


@dataclass(frozen=True)
class OCSortSettings(BoxTrackerSettings):
    """direction_consistency_weight: of momentum, in the score of a match. delta_t: frames over which a direction is measured.
    minimum_consecutive_frames counts the frames after a track's first. The others: see `BoxTrackerSettings`.
    """

    minimum_consecutive_frames: int = 3
    minimum_iou_threshold: float = 0.3
    direction_consistency_weight: float = 0.2
    delta_t: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction_consistency_weight < 0 or self.delta_t < 1:
            raise UsageError("direction_consistency_weight must be at least 0, and delta_t at least 1")


@dataclass(eq=False)
class OCSortTrack(BoxTrack):
    """age: frames since its first. sightings: boxes of the last `delta_t` frames, by age. direction: unit (y, x) in
    which it moves. saved_mean, saved_covariance: of the filter when it went out of sight.
    """

    age: int = 0
    sightings: dict[int, np.ndarray] = field(default_factory=dict)
    direction: np.ndarray | None = None
    saved_mean: np.ndarray | None = None
    saved_covariance: np.ndarray | None = None

    def before(self, delta_t: int) -> np.ndarray:
        """Its box `delta_t` frames ago, or else the nearest after that, or else the last one."""
        ages = [self.age - d for d in range(delta_t, 0, -1)] + [max(self.sightings, default=-1)]
        return next((self.sightings[a] for a in ages if a in self.sightings), self.box)

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {**super().state(), "sightings": [[age, box.tolist()] for age, box in self.sightings.items()]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> OCSortTrack:
        """The track whose `state()` this is."""
        track = super().from_state({k: v for k, v in state.items() if k != "sightings"})
        assert isinstance(track, cls)
        track.sightings = {int(age): np.array(box, np.float64) for age, box in state["sightings"]}
        return track


class OCSort(BoxTracker):
    """Two rounds of confident detections: by expected place and direction, then by where tracks were last seen."""

    method, filter, Settings, Track = "ocsort", CENTRE_AREA_RATIO, OCSortSettings, OCSortTrack
    settings: OCSortSettings
    tracks: list[OCSortTrack]  # type: ignore[assignment]

    def _associate(self, seen: FrameDetections) -> None:
        strong = seen.at_least(self.settings.high_conf_det_threshold)
        self._match_by_place(seen, strong, self._places(self.tracks), self._momentum(seen))
        self._match_by_place(seen, strong, np.array([t.box for t in self.tracks]).reshape(-1, 4))
        self._match_by_looks(seen, strong)
        self._start(seen, seen.free(strong))

    def _id(self, track: BoxTrack) -> int | None:
        """While a video begins, a track needs no frames in a row."""
        least = self.settings.minimum_consecutive_frames
        return self._confirm(track) if self.frames <= least or track.hits >= least else None

    def _lives(self, track: BoxTrack) -> bool:
        return track.missed <= self.settings.lost_track_buffer

    def _momentum(self, seen: FrameDetections) -> np.ndarray:
        """float64 (tracks, detections): from -1/2 (back) to 1/2 (straight on) times the detection's score and the weight."""
        if not self.tracks or not len(seen.boxes):
            return np.zeros((len(self.tracks), len(seen.boxes)))
        moving = np.array([t.direction if t.direction is not None else np.zeros(2) for t in self.tracks])
        known = np.array([t.direction is not None for t in self.tracks])
        here = np.stack([t.before(self.settings.delta_t) for t in self.tracks])
        towards = directions(here[:, None], seen.boxes[None])
        angle = np.arccos(np.clip((towards * moving[:, None]).sum(-1), -1, 1))
        along = known[:, None] * (np.pi / 2 - angle) / np.pi
        return self.settings.direction_consistency_weight * along * seen.scores

    def _predict(self, track: BoxTrack) -> None:
        assert isinstance(track, OCSortTrack)
        if track.missed > 0 and track.saved_mean is None:
            track.saved_mean, track.saved_covariance = track.mean, track.covariance
        super()._predict(track)
        track.age += 1

    def _detected(self, track: BoxTrack, box: np.ndarray) -> None:
        assert isinstance(track, OCSortTrack)
        delta_t = self.settings.delta_t
        if track.sightings:
            track.direction = directions(track.before(delta_t), box)
        if track.saved_mean is not None and track.saved_covariance is not None:
            track.mean, track.covariance = self._updated_again(
                track.saved_mean, track.saved_covariance, between(track.box, box, track.missed)
            )
            track.saved_mean = track.saved_covariance = None
        super()._detected(track, box)
        track.sightings[track.age] = box
        track.sightings = {age: b for age, b in track.sightings.items() if age >= track.age - delta_t}

    def _begin(self, track: BoxTrack, box: np.ndarray) -> None:
        assert isinstance(track, OCSortTrack)
        super()._begin(track, box)
        track.sightings, track.direction = {}, None

    def _updated_again(
        self, mean: np.ndarray, covariance: np.ndarray, boxes: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        for i, box in enumerate(boxes):
            if i:
                mean, covariance = self.filter.predict(mean, covariance)
            mean, covariance = self.filter.correct(mean, covariance, box)
        return mean, covariance


def directions(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Unit (y, x) from the centres of boxes (..., 4) to those of others; zeros where they are one."""
    step = (stop[..., :2] + stop[..., 2:] - start[..., :2] - start[..., 2:])[..., ::-1] / 2
    return np.asarray(step / (np.sqrt((step**2).sum(-1, keepdims=True)) + _EPS))


def between(start: np.ndarray, stop: np.ndarray, steps: int) -> list[np.ndarray]:
    """Boxes on the way from one to another, in equal steps of centre and size; the last is `stop`."""
    return [start + (stop - start) * (i + 1) / steps for i in range(steps)]
