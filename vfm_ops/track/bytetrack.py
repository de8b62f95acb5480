"""ByteTrack (Zhang et al., ECCV 2022, https://arxiv.org/abs/2110.06864): weak detections continue tracks, and start none."""

from __future__ import annotations

from dataclasses import dataclass

from vfm_ops.errors import UsageError
from vfm_ops.track.box_tracker import BoxTrack, BoxTracker, BoxTrackerSettings, FrameDetections
from vfm_ops.track.kalman import CORNERS


@dataclass(frozen=True)
class ByteTrackSettings(BoxTrackerSettings):
    """track_activation_threshold: least score of a detection that starts a track. The others: see `BoxTrackerSettings`."""

    track_activation_threshold: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.track_activation_threshold <= 1:
            raise UsageError(f"track_activation_threshold is {self.track_activation_threshold}: it must be from 0 to 1")


class ByteTrack(BoxTracker):
    """Two rounds: confident detections with all tracks, then weak ones with the tracks that are left."""

    method, filter, Settings, hits_at_first = "bytetrack", CORNERS, ByteTrackSettings, 1
    settings: ByteTrackSettings

    def _associate(self, seen: FrameDetections) -> None:
        strong = seen.at_least(self.settings.high_conf_det_threshold)
        weak = [i for i in range(len(seen.boxes)) if i not in set(strong)]
        places = self._places(self.tracks)
        self._match_by_place(seen, strong, places)
        self._match_by_place(seen, weak, places)
        self._match_by_looks(seen, strong)
        least = self.settings.track_activation_threshold
        self._start(seen, [i for i in seen.free(strong) if seen.scores[i] >= least])

    def _id(self, track: BoxTrack) -> int | None:
        return self._confirm(track) if track.hits >= self.settings.minimum_consecutive_frames else track.track_id

    def _lives(self, track: BoxTrack) -> bool:
        """One that is not confirmed ends on the first frame without a detection."""
        in_time = track.missed <= self.settings.lost_track_buffer
        return in_time and (track.missed == 0 or track.track_id is not None)
