"""Detect, then track: a detector finds objects on key frames, SAM 2 carries them, association tells new from known.

On every frame SAM 2 moves the living tracks on. On key frames (the first of a shot, then every `detect_every`th) the
detector's boxes become masks on the features that are there anyway, and are matched with the tracks by mask overlap and
looks: known objects are confirmed, lost ones come back under their id, new ones start a track. A cut ends all tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.track.appearance import colour_histogram
from vfm_ops.track.associate import AssociationSettings, Observation, TrackAssociator
from vfm_ops.track.frames import FrameMasks, aspect_changed, checked_rgb
from vfm_ops.track.masks import Rle, box_iou, encode_rle, mask_box, rle_iou
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.network import ImageEncoder, Sam2Network
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.rows import DetectionRow, FrameResult, TrackRow
from vfm_ops.track.state import state_from_bytes
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

# (rgb (H, W, 3) uint8, box xyxy, mask bool (H, W) or None) -> unit vector: what an object looks like.
Looks = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]
MIN_PIXELS_FOR_LOOKS = 64


class BoxDetector(Protocol):
    """What is needed of a detector."""

    def detect(self, images: Any, prompts: Any) -> list[Any]:
        """One object an image with boxes float32 (N, 4) xyxy, scores (N,) and prompt_index (N,)."""
        ...


# A detector never goes back, and its box is to replace a mask that drifted off, not to mend it.
FOR_DETECTIONS = TrackerSettings(
    bank=BankPolicy(max_prompted=4, history=0), corrections_are_prompts=False, feed_previous_masks=False
)


@dataclass(frozen=True)
class DetectTrackSettings:
    """detect_every: frames from one key frame to the next. min_score: least score of a detection that starts a track.
    max_tracks: tracks carried at once; the best detections come first. min_area: pixels that a track must show to be
    visible. drift_iou: a track whose box overlaps its detection's less than this is prompted again. duplicate_iou: of
    two tracks of one label that overlap more than this the younger ends. association, tracker: see there.
    """

    detect_every: int = 10
    min_score: float = 0.3
    max_tracks: int = 64
    min_area: int = 16
    drift_iou: float = 0.5
    duplicate_iou: float = 0.8
    association: AssociationSettings = field(default_factory=AssociationSettings)
    tracker: TrackerSettings = FOR_DETECTIONS

    def __post_init__(self) -> None:
        if self.detect_every < 1 or self.max_tracks < 1:
            raise UsageError("detect_every and max_tracks must be at least 1")
        if self.max_tracks > self.tracker.max_objects:
            raise UsageError(
                f"max_tracks {self.max_tracks} exceeds the tracker's max_objects {self.tracker.max_objects}"
            )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectTrackSettings:
        """The settings whose `dataclasses.asdict` this is."""
        # Saved by a version that had no such setting, a state goes on as it began.
        tracker = {"feed_previous_masks": False, **values["tracker"]}
        tracker["bank"] = BankPolicy(**tracker["bank"])
        association = AssociationSettings(**values["association"])
        return cls(**{**values, "association": association, "tracker": TrackerSettings(**tracker)})


@dataclass(frozen=True)
class _Seen:
    """A mask of this frame. area: its pixels."""

    box: np.ndarray
    mask: Rle
    score: float


class DetectThenTrack:
    """One video, frame by frame.

    detector: see `BoxDetector`. network: SAM 2's weights. prompts: what to look for; they are the labels. image_encoder:
    SAM 2's in a faster runtime. looks: see `Looks`; colours by default.
    """

    def __init__(
        self,
        detector: BoxDetector,
        network: Sam2Network,
        prompts: Sequence[str],
        settings: DetectTrackSettings | None = None,
        image_encoder: ImageEncoder | None = None,
        looks: Looks = colour_histogram,
    ) -> None:
        if not prompts or not all(p.strip() for p in prompts):
            raise UsageError("the detector's prompts are empty: name what to look for, such as ['person', 'bicycle']")
        self.detector, self.network, self.prompts = detector, network, list(prompts)
        self.settings = settings or DetectTrackSettings()
        self.image_encoder, self.looks = image_encoder, looks
        self.associator = TrackAssociator(self.settings.association)
        self._start_shot()

    def step(self, frame_index: int, pts_s: float, rgb: np.ndarray, is_cut: bool = False) -> FrameResult:
        """The next frame, in order. rgb: uint8 (H, W, 3). frame_index, pts_s: as the tables are to have them (frames may
        be sampled). is_cut: the first frame of a shot; a change of the picture's shape counts as one."""
        if is_cut or aspect_changed(self.tracker.state.size, checked_rgb(rgb).shape[:2]):
            self.associator.cut()
            self._start_shot()
        clock = self.shot_frames
        is_key = clock % self.settings.detect_every == 0
        seen = self._carry(self.tracker.track(rgb, frame_index=clock), rgb, clock, is_key)
        detections = self._detect(rgb, clock, seen) if is_key else []
        self.shot_frames += 1
        rows = self._rows(seen, clock, rgb.shape[:2], frame_index, pts_s)
        found = [DetectionRow(frame_index, pts_s, o.label, o.score, o.box.astype(np.float32), t) for o, t in detections]
        return FrameResult(rows, found, is_key)

    def to_bytes(self) -> bytes:
        """The whole state; `from_bytes` goes on with the next frame as if nothing had happened."""
        own = {"settings": asdict(self.settings), "prompts": self.prompts, "shot_frames": self.shot_frames}
        return self.tracker.to_bytes({**own, "associator": self.associator.state()})

    @classmethod
    def from_bytes(
        cls,
        detector: BoxDetector,
        network: Sam2Network,
        data: bytes,
        image_encoder: ImageEncoder | None = None,
        looks: Looks = colour_histogram,
    ) -> DetectThenTrack:
        """Goes on where `to_bytes` was called. Raises UsageError for other weights, or bytes that are no such state."""
        own = state_from_bytes(data, network.fingerprint())[1].get("extra")
        if not own or "associator" not in own:
            raise UsageError("these bytes are the state of a tracker alone, not of detect-then-track")
        settings = DetectTrackSettings.from_json(own["settings"])
        made = cls(detector, network, own["prompts"], settings, image_encoder, looks)
        made.associator = TrackAssociator.from_state(own["associator"])
        made.tracker = Sam2Tracker.from_bytes(network, data, image_encoder)
        made.shot_frames = int(own["shot_frames"])
        return made

    def _start_shot(self) -> None:
        self.tracker = Sam2Tracker(self.network, self.settings.tracker, self.image_encoder)
        self.shot_frames = 0

    def _carry(self, masks: FrameMasks, rgb: np.ndarray, clock: int, is_key: bool) -> dict[int, _Seen]:
        """Tells the association what SAM 2 saw of each track, and lets go of those that are lost."""
        seen: dict[int, _Seen] = {}
        for track_id, observation in self._observations(masks, rgb, is_key):
            if observation is not None and observation.mask is not None:
                self.associator.observe(track_id, clock, observation)
                seen[track_id] = _Seen(observation.box, observation.mask, observation.score)
        for track_id in [t for t in self.associator.tracks if t not in seen]:
            self.associator.miss(track_id, clock)
        tracks = self.associator.tracks
        for track_id in [t for t in self.tracker.object_ids if t not in tracks or tracks[t].status == "lost"]:
            self.tracker.remove(track_id)
        return seen

    def _observations(
        self, masks: FrameMasks, rgb: np.ndarray, with_looks: bool, labels: Sequence[str] | None = None
    ) -> list[tuple[int, Observation | None]]:
        """(object id, what is seen of it) for each mask of a frame; None for an object that does not show."""
        out: list[tuple[int, Observation | None]] = []
        scores, visible = masks.scores, masks.visible
        for i, object_id in enumerate(masks.object_ids):
            mask = masks.mask(object_id) if visible[i] else np.zeros((1, 1), bool)
            area = int(mask.sum())
            if area < self.settings.min_area:
                out.append((object_id, None))
                continue
            box = mask_box(mask)
            looks = self.looks(rgb, box, mask) if with_looks and area >= MIN_PIXELS_FOR_LOOKS else None
            label = labels[i] if labels is not None else self.associator.tracks[object_id].label
            out.append((object_id, Observation(box, label, float(scores[i]), encode_rle(mask), looks)))
        return out

    def _detect(self, rgb: np.ndarray, clock: int, seen: dict[int, _Seen]) -> list[tuple[Observation, int | None]]:
        """Runs the detector, matches its boxes with the tracks, and prompts SAM 2 for what is new, back, or adrift."""
        observations = self._detections(rgb)
        room = self.settings.max_tracks - len(self.tracker.object_ids)
        strong = [o.score >= self.settings.min_score for o in observations]
        before = {t: track.visible for t, track in self.associator.tracks.items()}
        ids = self.associator.update(clock, observations, end_unmatched=False, may_start=strong)
        prompts: list[Prompt] = []
        for i, (observation, track_id) in enumerate(zip(observations, ids)):
            if track_id is None or not self._needs_prompt(observation, track_id, before, seen):
                continue
            if track_id not in self.tracker.object_ids:
                if room == 0:
                    self.associator.forget(track_id)
                    ids[i] = None
                    continue
                room -= 1
            prompts.append(Prompt(track_id, box=observation.box))
        if prompts:
            for track_id, found in self._observations(self.tracker.prompt(prompts), rgb, True):
                if found is not None and found.mask is not None:
                    self.associator.observe(track_id, clock, found)
                    seen[track_id] = _Seen(found.box, found.mask, found.score)
        self._drop_unconfirmed({t for t in ids if t is not None})
        self._drop_duplicates(seen)
        return [(o, t if t in self.associator.tracks else None) for o, t in zip(observations, ids)]

    def _detections(self, rgb: np.ndarray) -> list[Observation]:
        """The detector's boxes, best first, at most `max_tracks`, each with the mask that SAM 2 sees in it."""
        found = self.detector.detect([rgb], [self.prompts])[0]
        height, width = rgb.shape[:2]
        boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        order = np.argsort(-np.asarray(found.scores), kind="stable")
        kept = [int(i) for i in order if boxes[i, 2] > boxes[i, 0] and boxes[i, 3] > boxes[i, 1]][
            : self.settings.max_tracks
        ]
        if not kept:
            return []
        labels = [self.prompts[int(found.prompt_index[i])] for i in kept]
        preview = self.tracker.preview([Prompt(k, box=boxes[i]) for k, i in enumerate(kept)])
        out = []
        for i, label, (_, looked) in zip(kept, labels, self._observations(preview, rgb, True, labels)):
            mask, looks = (looked.mask, looked.looks) if looked is not None else (None, None)
            out.append(Observation(boxes[i], label, float(found.scores[i]), mask, looks))
        return out

    def _needs_prompt(
        self, observation: Observation, track_id: int, before: dict[int, bool], seen: dict[int, _Seen]
    ) -> bool:
        """New tracks, tracks that come back into sight, and tracks that drifted off their detection."""
        if not before.get(track_id, False) or track_id not in seen:
            return True
        return bool(box_iou(observation.box[None], seen[track_id].box[None])[0, 0] < self.settings.drift_iou)

    def _drop_unconfirmed(self, detected: set[int]) -> None:
        tracks = self.associator.tracks
        for track_id in [t for t, track in tracks.items() if track.status == "tentative" and t not in detected]:
            self._end(track_id)

    def _drop_duplicates(self, seen: dict[int, _Seen]) -> None:
        """Ends the younger of two tracks that cover the same pixels under the same label."""
        tracks = self.associator.tracks
        ids = sorted((t for t in seen if t in tracks), key=lambda t: (tracks[t].born, t))
        overlap = rle_iou([seen[t].mask for t in ids], [seen[t].mask for t in ids])
        ended: set[int] = set()
        for j, younger in enumerate(ids):
            olders = [i for i in range(j) if ids[i] not in ended and tracks[ids[i]].label == tracks[younger].label]
            if any(overlap[i, j] > self.settings.duplicate_iou for i in olders):
                ended.add(younger)
        for track_id in ended:
            self._end(track_id)

    def _end(self, track_id: int) -> None:
        self.associator.forget(track_id)
        if track_id in self.tracker.object_ids:
            self.tracker.remove(track_id)

    def _rows(
        self, seen: dict[int, _Seen], clock: int, size: tuple[int, int], frame_index: int, pts_s: float
    ) -> list[TrackRow]:
        """A row for each confirmed track that is in sight or may come back into it at any moment."""
        limits = np.array([size[1], size[0], size[1], size[0]])
        rows = []
        for t, track in self.associator.tracks.items():
            if track.status in ("tentative", "lost"):
                continue
            found = seen.get(t)
            box = found.box if found else np.clip(track.place_at(clock), 0, limits)
            mask, score = (found.mask, found.score) if found else (None, 0.0)
            rows.append(
                TrackRow(t, frame_index, pts_s, track.label, box.astype(np.float32), mask, score, found is not None)
            )
        return rows
