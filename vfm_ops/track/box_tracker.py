"""Tracking by detection: the boxes of every frame become tracks, without masks. `bytetrack` and `ocsort` are the two methods.

Each frame, every track's Kalman filter says where it should be; rounds of optimal assignment (Hungarian) give
detections to tracks of their own label; what is left of the confident detections starts tracks. Appearance is optional:
where detections carry a unit vector (`Observation.looks`) it counts in the assignment, and brings objects back that
return elsewhere. Numpy and scipy only; the state is plain JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from vfm_ops.errors import UsageError
from vfm_ops.track.associate import Observation, cosines, unit
from vfm_ops.track.kalman import BoxFilter, checked_box
from vfm_ops.track.masks import box_iou

_SHARES = ("minimum_iou_threshold", "high_conf_det_threshold", "looks_weight", "min_looks", "reid_looks", "smoothing")


@dataclass(frozen=True)
class BoxTrackerSettings:
    """Named as in the package `trackers`, and below as in `AssociationSettings`.

    lost_track_buffer: frames without a detection before a track ends. minimum_consecutive_frames: frames in a row
    before a track is given an id. minimum_iou_threshold: least IoU of a match by place. high_conf_det_threshold:
    detections that score less are weak. looks_weight: what a cosine of 1 adds to the score of a match by place.
    min_looks: least cosine of a match by place. reid_looks: least cosine of a match by looks alone, of a track that was
    not seen on the frame before. smoothing: weight of the past in a track's looks. The last four count where both
    sides' looks are known.
    """

    lost_track_buffer: int = 30
    minimum_consecutive_frames: int = 2
    minimum_iou_threshold: float = 0.1
    high_conf_det_threshold: float = 0.6
    looks_weight: float = 0.25
    min_looks: float = 0.4
    reid_looks: float = 0.8
    smoothing: float = 0.8

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.lost_track_buffer < 0 or self.minimum_consecutive_frames < 1:
            raise UsageError("lost_track_buffer must be at least 0, and minimum_consecutive_frames at least 1")


@dataclass(eq=False)
class BoxTrack:
    """One object. box: its last detection's. mean, covariance: of the filter. track_id: None until it is confirmed.
    hits: frames in a row that it was detected on. missed: frames since its last detection, this one included.
    """

    label: str
    box: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    track_id: int | None = None
    hits: int = 0
    missed: int = 0
    looks: np.ndarray | None = None

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BoxTrack:
        """The track whose `state()` this is."""
        values: dict[str, Any] = {k: np.array(v, np.float64) if isinstance(v, list) else v for k, v in state.items()}
        return cls(**values)


class BoxTracker(ABC):
    """One video, frame by frame.

    Args:
        settings: of the method; its own defaults where None.

    Example:
        >>> from vfm_ops.track.bytetrack import ByteTrack
        >>> tracker = ByteTrack()
        >>> boxes = [np.array([10.0 + t, 20, 50 + t, 80]) for t in range(3)]
        >>> [tracker.update([Observation(box, "person", 0.9)]) for box in boxes]
        [[None], [1], [1]]
    """

    method: ClassVar[str]
    filter: ClassVar[BoxFilter]
    Settings: ClassVar[type[BoxTrackerSettings]]
    Track: ClassVar[type[BoxTrack]] = BoxTrack
    hits_at_first: ClassVar[int] = 0  # whether a track's first detection counts as one of the frames in a row

    def __init__(self, settings: BoxTrackerSettings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.tracks: list[BoxTrack] = []
        self.next_id = 1
        self.frames = 0  # since the video, or the shot, began

    def update(self, observations: Sequence[Observation]) -> list[int | None]:
        """The next frame, which must not be left out where nothing was detected: an empty list.

        Args:
            observations: its detections. Of each, box (xyxy), label, score, and looks where there are any; tracks never change
                their label.

        Returns:
            For each detection the id of its track; None where it has none, or one that is not confirmed yet.

        Raises:
            UsageError: a box is not finite, or its corners are swapped.
        """
        boxes = [checked_box(o.box) for o in observations]
        if not self.tracks and not boxes:
            return []
        seen = FrameDetections(observations, np.array(boxes).reshape(-1, 4))
        for track in self.tracks:
            self._predict(track)
        self._associate(seen)
        ids = [self._id(seen.track_of[i]) if i in seen.track_of else None for i in range(len(boxes))]
        self.tracks = [t for t in self.tracks if self._lives(t)]
        self.frames += 1
        return ids

    def cut(self) -> None:
        """A shot ends: no track goes on. Ids are never used again."""
        self.tracks, self.frames = [], 0

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        facts = {"settings": asdict(self.settings), "next_id": self.next_id, "frames": self.frames}
        return {"method": self.method, **facts, "tracks": [t.state() for t in self.tracks]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BoxTracker:
        """The tracker whose `state()` this is; UsageError for another method's."""
        if state["method"] != cls.method:
            raise UsageError(f"this state is one of {state['method']}, not of {cls.method}")
        names = {f.name for f in fields(cls.Settings)}
        tracker = cls(cls.Settings(**{k: v for k, v in state["settings"].items() if k in names}))
        tracker.next_id, tracker.frames = int(state["next_id"]), int(state["frames"])
        tracker.tracks = [cls.Track.from_state(t) for t in state["tracks"]]
        return tracker

    @abstractmethod
    def _associate(self, seen: FrameDetections) -> None:
        """The method's rounds, then new tracks."""

    @abstractmethod
    def _id(self, track: BoxTrack) -> int | None:
        """What a track is called on a frame on which it was detected."""

    @abstractmethod
    def _lives(self, track: BoxTrack) -> bool:
        """Whether a track goes on after this frame."""

    def _places(self, tracks: Sequence[BoxTrack]) -> np.ndarray:
        """float64 (N, 4): where the filters expect them."""
        return np.array([self.filter.box(t.mean) for t in tracks]).reshape(-1, 4)

    def _predict(self, track: BoxTrack) -> None:
        track.mean, track.covariance = self.filter.predict(track.mean, track.covariance)
        if track.missed > 0:
            track.hits = 0
        track.missed += 1

    def _detected(self, track: BoxTrack, box: np.ndarray) -> None:
        track.mean, track.covariance = self.filter.correct(track.mean, track.covariance, box)
        track.box, track.missed = box, 0
        track.hits += 1

    def _begin(self, track: BoxTrack, box: np.ndarray) -> None:
        """Its motion is forgotten."""
        track.mean, track.covariance = self.filter.begin(box)

    def _match_by_place(
        self, seen: FrameDetections, detections: Sequence[int], places: np.ndarray, direction: np.ndarray | None = None
    ) -> None:
        """Gives free ones of some detections to free tracks. places: float64 (tracks, 4), of all. direction: float (tracks,
        detections), of all too, added to the score.
        """
        tracks, free = self._free(seen), seen.free(detections)
        rows = [self.tracks.index(t) for t in tracks]
        overlap = box_iou(places[rows], seen.boxes[free])
        looks, score = seen.cosines(tracks, free), overlap
        if direction is not None and overlap.size:
            score = overlap + direction[np.ix_(rows, free)]
        known = np.nan_to_num(looks)
        fits = seen.same_label(tracks, free) & (np.isnan(looks) | (known >= self.settings.min_looks))
        score = np.where(fits, score + self.settings.looks_weight * known, 0.0)
        self._assign(seen, tracks, free, score, fits & (overlap >= self.settings.minimum_iou_threshold))

    def _match_by_looks(self, seen: FrameDetections, detections: Sequence[int]) -> None:
        """Gives free detections to confirmed tracks that were out of sight, by appearance."""
        tracks = [t for t in self._free(seen) if t.missed > 1 and t.track_id is not None]
        free = seen.free(detections)
        looks = np.nan_to_num(seen.cosines(tracks, free), nan=-1.0)
        fits = seen.same_label(tracks, free) & (looks >= self.settings.reid_looks)
        for track in self._assign(seen, tracks, free, np.where(fits, looks, 0.0), fits):
            self._begin(track, track.box)  # it jumped, which says nothing of its speed

    def _free(self, seen: FrameDetections) -> list[BoxTrack]:
        taken = {id(t) for t in seen.track_of.values()}
        return [t for t in self.tracks if id(t) not in taken]

    def _assign(
        self, seen: FrameDetections, tracks: list[BoxTrack], free: list[int], score: np.ndarray, allowed: np.ndarray
    ) -> list[BoxTrack]:
        """Updates the tracks of the best pairs (track, detection) among the allowed ones, and returns them."""
        # As the authors have it: the best sum over all pairs first, and what may not be is dropped after that.
        rows, columns = linear_sum_assignment(score, maximize=True)
        pairs = [(tracks[r], free[c]) for r, c in zip(rows, columns) if allowed[r, c]]
        for track, i in pairs:
            self._detected(track, seen.boxes[i])
            self._look(track, seen.observations[i])
            seen.track_of[i] = track
        return [track for track, _ in pairs]

    def _look(self, track: BoxTrack, observation: Observation) -> None:
        if observation.looks is not None:
            new, keep = unit(np.asarray(observation.looks, np.float64)), self.settings.smoothing
            track.looks = new if track.looks is None else unit(keep * track.looks + (1 - keep) * new)

    def _start(self, seen: FrameDetections, detections: Sequence[int]) -> None:
        """A track for each."""
        for i in detections:
            mean, covariance = self.filter.begin(seen.boxes[i])
            label = seen.observations[i].label
            track = self.Track(label, seen.boxes[i], mean, covariance, hits=self.hits_at_first)
            self._look(track, seen.observations[i])
            self.tracks.append(track)

    def _confirm(self, track: BoxTrack) -> int:
        """Its id, which it is given now if it has none."""
        if track.track_id is None:
            track.track_id, self.next_id = self.next_id, self.next_id + 1
        return track.track_id


class FrameDetections:
    """The detections of a frame, and the track that each was given. boxes: float64 (N, 4)."""

    def __init__(self, observations: Sequence[Observation], boxes: np.ndarray) -> None:
        self.observations, self.boxes = observations, boxes
        self.scores = np.array([o.score for o in observations], np.float64)
        self.track_of: dict[int, BoxTrack] = {}

    def at_least(self, score: float) -> list[int]:
        """The detections that score so much."""
        return np.flatnonzero(self.scores >= score).tolist()

    def free(self, detections: Sequence[int]) -> list[int]:
        """Those of some detections that have no track."""
        return [i for i in detections if i not in self.track_of]

    def same_label(self, tracks: Sequence[BoxTrack], detections: Sequence[int]) -> np.ndarray:
        """bool (tracks, detections)."""
        pairs = [[t.label == self.observations[i].label for i in detections] for t in tracks]
        return np.array(pairs, bool).reshape(len(tracks), len(detections))

    def cosines(self, tracks: Sequence[BoxTrack], detections: Sequence[int]) -> np.ndarray:
        """float64 (tracks, detections); NaN where either side's looks are not known."""
        return cosines([t.looks for t in tracks], [self.observations[i].looks for i in detections])
