"""Detection-to-track association: which of this frame's detections is which object of the frames before.

Two rounds of optimal assignment (Hungarian): first by place, mask IoU (box IoU where a mask is missing) with what living
tracks are expected to cover, then by looks alone for objects that were out of sight. A track is

    tentative -> active <-> occluded -> lost -> forgotten
                    (out of sight)  (patience)  (memory)

tentative until it was detected `confirm_after` times in a row; occluded while out of sight, its id kept and its place
extrapolated; lost after `patience` frames: from then on only looks bring it back. A shot cut forgets them all: no id
ever crosses a cut. Numpy and scipy only; the state is plain JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from vfm_ops.errors import UsageError
from vfm_ops.track.masks import Rle, box_iou, moved_rle, rle_iou

Status = Literal["tentative", "active", "occluded", "lost"]


@dataclass(frozen=True)
class AssociationSettings:
    """min_iou: least overlap of a match by place. min_looks: least cosine of a match by place, where looks are known.
    looks_weight: share of looks in the score of a match by place. reid_looks: least cosine of a match by looks alone.
    confirm_after: detections in a row that make a track. patience: frames out of sight before a track is lost. memory:
    frames out of sight before it is forgotten. smoothing: weight of the past in a track's looks and speed.
    """

    min_iou: float = 0.3
    min_looks: float = 0.4
    looks_weight: float = 0.25
    reid_looks: float = 0.8
    confirm_after: int = 1
    patience: int = 30
    memory: int = 300
    smoothing: float = 0.8

    def __post_init__(self) -> None:
        for name in ("min_iou", "min_looks", "looks_weight", "reid_looks", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"association: {name} must be between 0 and 1, not {getattr(self, name)}")
        if self.confirm_after < 1 or self.patience < 0 or self.memory < self.patience:
            raise UsageError("association: confirm_after >= 1 and 0 <= patience <= memory are needed")


@dataclass(frozen=True)
class Observation:
    """One detection. box: xyxy, float. label: what it is; tracks never change theirs. looks: unit vector, or None."""

    box: np.ndarray
    label: str = ""
    score: float = 1.0
    mask: Rle | None = None
    looks: np.ndarray | None = None


@dataclass
class Track:
    """One object. box: where it was last seen. velocity: of its centre, pixels a frame. seen: frame it was last seen on.
    hits: detections so far. moves: steps that its velocity was measured over."""

    track_id: int
    label: str
    box: list[float]
    score: float
    seen: int
    born: int
    status: Status = "tentative"
    hits: int = 1
    velocity: list[float] = field(default_factory=lambda: [0.0, 0.0])
    moves: int = 0
    looks: list[float] | None = None
    mask: Rle | None = None

    @property
    def visible(self) -> bool:
        """Whether it was seen on the latest frame."""
        return self.status in ("tentative", "active")

    def place_at(self, frame_index: int) -> np.ndarray:
        """float64 (4,): its box, moved on at its last speed."""
        shift = np.array(self.velocity) * (frame_index - self.seen)
        return np.array(self.box, float) + np.concatenate([shift, shift])

    def mask_at(self, frame_index: int) -> Rle | None:
        """Its mask, moved on at its last speed."""
        x, y = (round(v * (frame_index - self.seen)) for v in self.velocity)
        return self.mask if self.mask is None or (x, y) == (0, 0) else moved_rle(self.mask, x, y)


class TrackAssociator:
    """Association over one video. Call `update` on frames with detections, `observe` / `miss` where something else (SAM 2)
    carries the tracks in between, and `cut` on the first frame of a shot."""

    def __init__(self, settings: AssociationSettings | None = None) -> None:
        self.settings = settings or AssociationSettings()
        self.tracks: dict[int, Track] = {}
        self.next_id = 1

    def update(
        self,
        frame_index: int,
        observations: Sequence[Observation],
        end_unmatched: bool = True,
        may_start: Sequence[bool] | None = None,
    ) -> list[int | None]:
        """Matches a frame's detections with tracks; unmatched ones start tracks. Returns a track id for each, or None.

        may_start: which detections may start a track (all by default); the others can only continue one.
        end_unmatched: tracks without a detection are out of sight (what tracking by detection means); False leaves those
        as they are, for when `observe` has told already what became of them.
        """
        ids: list[int | None] = [None] * len(observations)
        for match in (self._match_by_place, self._match_by_looks):
            free = [i for i, found in enumerate(ids) if found is None]
            for i, track_id in match(frame_index, observations, free, {t for t in ids if t is not None}):
                ids[i] = track_id
                self._hit(self.tracks[track_id], frame_index, observations[i])
        matched = {track_id for track_id in ids if track_id is not None}
        if end_unmatched:
            for track_id in [t for t in self.tracks if t not in matched]:
                self.miss(track_id, frame_index)
        for i, observation in enumerate(observations):
            if ids[i] is None and (may_start is None or may_start[i]):
                ids[i] = self._birth(frame_index, observation)
        return ids

    def observe(self, track_id: int, frame_index: int, observation: Observation) -> None:
        """A track was followed to this frame (by masks, not by a detection): it is in sight, here."""
        track = self._known(track_id)
        self._move(track, frame_index, observation)
        if track.status != "tentative":
            track.status = "active"

    def miss(self, track_id: int, frame_index: int) -> None:
        """A track is out of sight on this frame: occluded, then lost, then forgotten. Tentative ones are dropped."""
        track = self._known(track_id)
        gone = frame_index - track.seen
        if (
            track.status == "tentative"
            or gone > self.settings.memory
            or (gone > self.settings.patience and not track.looks)
        ):
            del self.tracks[track_id]
        else:
            track.status = "lost" if gone > self.settings.patience else "occluded"

    def forget(self, track_id: int) -> None:
        """Ends a track at once."""
        del self.tracks[self._known(track_id).track_id]

    def cut(self) -> None:
        """A shot ends: no track goes on. Ids are never used again."""
        self.tracks.clear()

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "settings": asdict(self.settings),
            "next_id": self.next_id,
            "tracks": [asdict(t) for t in self.tracks.values()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrackAssociator:
        """The associator whose `state()` this is."""
        associator = cls(AssociationSettings(**state["settings"]))
        associator.next_id = int(state["next_id"])
        names = {f.name for f in fields(Track)}
        for entry in state["tracks"]:
            track = Track(**{k: v for k, v in entry.items() if k in names})
            associator.tracks[track.track_id] = track
        return associator

    def _known(self, track_id: int) -> Track:
        if track_id not in self.tracks:
            raise UsageError(f"track {track_id} is not alive; living ones: {sorted(self.tracks)}")
        return self.tracks[track_id]

    def _match_by_place(
        self, frame_index: int, observations: Sequence[Observation], free: list[int], taken: set[int]
    ) -> list[tuple[int, int]]:
        living = [t for t in self.tracks.values() if t.status != "lost" and t.track_id not in taken]
        settings = self.settings
        overlap = self._overlap(frame_index, [observations[i] for i in free], living)
        looks = cosines([observations[i].looks for i in free], [t.looks for t in living])
        known = ~np.isnan(looks)
        score = np.where(
            known, (1 - settings.looks_weight) * overlap + settings.looks_weight * np.nan_to_num(looks), overlap
        )
        allowed = (overlap >= settings.min_iou) & (~known | (np.nan_to_num(looks) >= settings.min_looks))
        return self._assign(score, allowed, observations, free, living)

    def _match_by_looks(
        self, frame_index: int, observations: Sequence[Observation], free: list[int], taken: set[int]
    ) -> list[tuple[int, int]]:
        away = [t for t in self.tracks.values() if not t.visible and t.track_id not in taken]
        looks = np.nan_to_num(cosines([observations[i].looks for i in free], [t.looks for t in away]), nan=-1.0)
        return self._assign(looks, looks >= self.settings.reid_looks, observations, free, away)

    def _assign(
        self,
        score: np.ndarray,
        allowed: np.ndarray,
        observations: Sequence[Observation],
        free: list[int],
        tracks: list[Track],
    ) -> list[tuple[int, int]]:
        """Best one-to-one pairs (observation, track id) of the same label among the allowed ones."""
        if score.size == 0:
            return []
        same = np.array([[observations[i].label == t.label for t in tracks] for i in free])
        # Forbidden pairs score 0, so that they are taken only where nothing is to be had, and dropped after that.
        allowed = allowed & same
        rows, columns = linear_sum_assignment(np.where(allowed, 1.0 + score, 0.0), maximize=True)
        return [(free[r], tracks[c].track_id) for r, c in zip(rows, columns) if allowed[r, c]]

    @staticmethod
    def _overlap(frame_index: int, observations: list[Observation], tracks: list[Track]) -> np.ndarray:
        """(observations, tracks) mask IoU where both have masks and the track is in sight, else box IoU."""
        if not observations or not tracks:
            return np.zeros((len(observations), len(tracks)))
        places = np.stack([t.place_at(frame_index) for t in tracks])
        overlap = box_iou(np.stack([o.box for o in observations]), places)
        rows = [i for i, o in enumerate(observations) if o.mask is not None]
        columns = [j for j, t in enumerate(tracks) if t.mask is not None and t.visible]
        if rows and columns:
            left = [m for m in (observations[i].mask for i in rows) if m]
            right = [m for m in (tracks[j].mask_at(frame_index) for j in columns) if m]
            overlap[np.ix_(rows, columns)] = rle_iou(left, right)
        return overlap

    def _hit(self, track: Track, frame_index: int, observation: Observation) -> None:
        self._move(track, frame_index, observation)
        track.hits += 1
        track.score = observation.score
        if track.status != "tentative" or track.hits >= self.settings.confirm_after:
            track.status = "active"

    def _move(self, track: Track, frame_index: int, observation: Observation) -> None:
        keep = self.settings.smoothing
        box = np.asarray(observation.box, float)
        steps = frame_index - track.seen
        if steps > 0:
            old = np.array(track.box)
            step = ((box[:2] + box[2:]) - (old[:2] + old[2:])) / (2 * steps)
            weight = min(keep, track.moves / (track.moves + 1))
            track.velocity = (weight * np.array(track.velocity) + (1 - weight) * step).tolist()
            track.moves += 1
        track.box, track.mask, track.seen = box.tolist(), observation.mask, frame_index
        if observation.looks is not None:
            new = np.asarray(observation.looks, float)
            track.looks = unit(new if track.looks is None else keep * np.array(track.looks) + (1 - keep) * new).tolist()

    def _birth(self, frame_index: int, observation: Observation) -> int:
        track = Track(
            self.next_id,
            observation.label,
            np.asarray(observation.box, float).tolist(),
            float(observation.score),
            frame_index,
            frame_index,
            "active" if self.settings.confirm_after == 1 else "tentative",
            mask=observation.mask,
            looks=None if observation.looks is None else unit(np.asarray(observation.looks, float)).tolist(),
        )
        self.tracks[track.track_id] = track
        self.next_id += 1
        return track.track_id


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector at length 1; one of zeros as it is."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def cosines(a: Sequence[Any], b: Sequence[Any]) -> np.ndarray:
    """(len(a), len(b)) cosines; NaN where either is unknown."""
    out = np.full((len(a), len(b)), np.nan)
    rows, columns = [i for i, x in enumerate(a) if x is not None], [j for j, x in enumerate(b) if x is not None]
    if rows and columns:
        left = np.stack([unit(np.asarray(a[i], float)) for i in rows])
        right = np.stack([np.asarray(b[j], float) for j in columns])
        out[np.ix_(rows, columns)] = left @ right.T
    return out
