"""A video whose objects are prompted, corrected and followed, in any order: Meta's video predictor's tools, under its names.

A session holds a tracker, a way to the video's frames, and, for each object and either direction, the frame from which it is
still to be tracked. A prompt is answered at once, from the frame alone or as a correction of the mask that is there, and sets
that frame back; `propagate_in_video` goes from the earliest one on. So what is tracked again is what a prompt changed: the
object that was prompted, from its frame on.

    >>> session = VideoSession(load_tracker("sam2:pocket"), frames)
    >>> session.add_new_points_or_box(0, 1, points=[[60, 40]], labels=[1])
    >>> for masks in session.propagate_in_video():
    ...     show(masks.frame_index, masks.object_ids, masks.masks())
    >>> session.add_new_points_or_box(12, 1, points=[[20, 90]], labels=[0])     # not that
    >>> list(session.propagate_in_video())                                       # from frame 12 on
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.track.frames import FrameMasks
from vfm_ops.track.intervals import FrameIntervals
from vfm_ops.track.network import ImageEncoder, Sam2Network
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.state import state_from_bytes
from vfm_ops.track.tracker import Sam2Tracker


class Frames(Protocol):
    """The frames of a video, in any order: a list or an array of RGB frames, or `vfm_ops.media.video_frames.VideoFrames`."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """uint8 (H, W, 3)."""
        ...


@dataclass
class _Progress:
    """What is still to be tracked of one object. forward, backward: the next frame in either direction. reversed: frames
    that were tracked backward last, so that a correction on one is made, and carried on, in that direction."""

    forward: int
    backward: int
    reversed: FrameIntervals = field(default_factory=FrameIntervals)

    def prompted(self, index: int) -> None:
        """A prompt came, or went, on a frame."""
        if index in self.reversed or index - 1 in self.reversed:
            self.backward = max(self.backward, index)
        else:
            self.backward = min(self.backward, index)
        if index not in self.reversed:
            self.forward = min(self.forward, index)

    def next(self, reverse: bool) -> int:
        """The frame that it is to be tracked on next."""
        return self.backward if reverse else self.forward

    def passed(self, index: int, reverse: bool) -> None:
        """The object was tracked on a frame."""
        if reverse:
            self.backward = index - 1
            self.reversed.add(index)
        else:
            self.forward = index + 1
            self.reversed.discard(index)


class VideoSession:
    """One video, its objects and their prompts.

    Args:
        tracker: a tracker that has seen nothing, with the settings wanted (`TrackerSettings`): holes filled, no overlaps,
            `history`, and so on.
        frames: the video. Its frames are asked for one at a time, mostly in order.

    Example:
        >>> session = VideoSession(load_tracker("sam2:pocket"), [frame0, frame1, frame2])
        >>> session.add_new_points_or_box(0, 1, box=[20, 30, 90, 120]).masks().shape
        (1, 240, 320)
    """

    def __init__(self, tracker: Sam2Tracker, frames: Frames) -> None:
        self.tracker = tracker
        self.frames = frames
        self._progress: dict[int, _Progress] = {}

    @property
    def object_ids(self) -> list[int]:
        """The objects, in the order in which they were first prompted."""
        return self.tracker.object_ids

    @property
    def prompted(self) -> dict[int, list[int]]:
        """The frames of each object that are remembered as prompts, in order."""
        return {i: sorted(bank.prompted) for i, bank in self.tracker.state.objects.items()}

    def add_new_points_or_box(
        self,
        frame_idx: int,
        obj_id: int,
        points: np.ndarray | Sequence[Sequence[float]] | None = None,
        labels: np.ndarray | Sequence[int] | None = None,
        clear_old_points: bool = True,
        box: np.ndarray | Sequence[float] | None = None,
    ) -> FrameMasks:
        """Says where an object is on a frame, and where it is not.

        On a frame where the object has a mask already, the clicks correct that mask.

        Args:
            frame_idx: the frame, 0 for the first.
            obj_id: any integer; an unknown one begins a new object.
            points: (P, 2) xy in pixels of the frame.
            labels: (P,) of 1 (on the object) and 0 (off it).
            clear_old_points: False adds the points to those of the frame, where True replaces them.
            box: xyxy in pixels; it begins anew, so that it needs `clear_old_points`.

        Returns:
            The object's mask on that frame.

        Raises:
            UsageError: a point off the frame, a label without a point, and the like; nothing is changed then.
        """
        return self._add(frame_idx, Prompt(obj_id, points, labels, box, append=not clear_old_points))

    def add_new_mask(self, frame_idx: int, obj_id: int, mask: np.ndarray) -> FrameMasks:
        """Says what an object is on a frame, exactly.

        Args:
            frame_idx, obj_id: as in `add_new_points_or_box`.
            mask: bool (H, W) of the frame's size.

        Returns:
            The mask as the model holds it.

        Raises:
            UsageError: a mask of another size, or without a pixel.
        """
        return self._add(frame_idx, Prompt(obj_id, mask=np.asarray(mask)))

    def propagate_in_video(
        self,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[FrameMasks]:
        """Follows the objects through the video, frame by frame.

        Prompts may come between two frames: one on a frame that was passed takes the loop back to it. A loop that is
        left early is gone on with by the next call.

        Args:
            start_frame_idx: None tracks what is not tracked yet, or was changed by a prompt since: each object from the
                frame of its earliest change on. A number tracks all objects, from there.
            max_frame_num_to_track: frames beyond the first; None goes to the end of the video.
            reverse: towards the first frame. Both directions from a prompt are two calls.

        Returns:
            Masks of the objects that were tracked on each frame, as they come; the others keep theirs.

        Raises:
            UsageError: nothing is prompted, or no such frame.
        """
        if not self._progress:
            raise UsageError("no object has a prompt: call add_new_points_or_box or add_new_mask first")
        if max_frame_num_to_track is not None and max_frame_num_to_track < 0:
            raise UsageError(f"`max_frame_num_to_track` must be 0 or more frames, not {max_frame_num_to_track}")
        if start_frame_idx is not None:
            self._check_frame(start_frame_idx, "start_frame_idx")
            for progress in self._progress.values():
                progress.backward, progress.forward = (
                    (start_frame_idx, progress.forward) if reverse else (progress.backward, start_frame_idx)
                )
        return self._propagate(len(self.frames) if max_frame_num_to_track is None else max_frame_num_to_track, reverse)

    def remove_object(self, obj_id: int) -> None:
        """Forgets an object and its prompts; the others are left as they are. UsageError when there is none."""
        self.tracker.remove(obj_id)
        self._progress.pop(obj_id, None)

    def clear_all_prompts_in_frame(self, frame_idx: int, obj_id: int) -> None:
        """Takes back what was said of an object on a frame; it is tracked again from there, by the prompts that it has left.

        UsageError when it has no prompt there. An object without any prompt is not tracked until it gets one.
        """
        self._check_frame(frame_idx)
        self.tracker.clear_prompt(obj_id, frame_idx)
        left = self.prompted[obj_id]
        if not left:
            self._progress.pop(obj_id, None)
            return
        self._progress[obj_id].prompted(frame_idx)
        self._progress[obj_id].forward = max(self._progress[obj_id].forward, left[0])

    def reset_state(self) -> None:
        """Forgets all objects and prompts."""
        self.tracker.reset()
        self._progress.clear()

    def to_bytes(self) -> bytes:
        """The whole session but its frames, as `Sam2Tracker.to_bytes` gives it: `from_bytes` goes on with it, bit for bit."""
        progress = {i: [p.forward, p.backward, p.reversed.intervals] for i, p in self._progress.items()}
        return self.tracker.to_bytes({"session": list(progress.items())})

    @classmethod
    def from_bytes(
        cls, network: Sam2Network, data: bytes, frames: Frames, image_encoder: ImageEncoder | None = None
    ) -> VideoSession:
        """The session that `to_bytes` gave, on the same video. UsageError for other weights, or what is no session."""
        own = state_from_bytes(data, network.fingerprint())[1].get("extra")
        if not own or "session" not in own:
            raise UsageError("these bytes are the state of a tracker, not of a session")
        session = cls(Sam2Tracker.from_bytes(network, data, image_encoder), frames)
        for object_id, (forward, backward, reversed_) in own["session"]:
            session._progress[object_id] = _Progress(forward, backward, FrameIntervals(reversed_))
        return session

    def next_frame(self, reverse: bool = False) -> int | None:
        """The frame that `propagate_in_video` would go on with; None when all is tracked."""
        ahead = [p.next(reverse) for p in self._progress.values()]
        ahead = [t for t in ahead if 0 <= t < len(self.frames)]
        return None if not ahead else max(ahead) if reverse else min(ahead)

    def _propagate(self, beyond_first: int, reverse: bool) -> Iterator[FrameMasks]:
        for _ in range(beyond_first + 1):
            index = self.next_frame(reverse)
            if index is None:
                return
            # Where masks must not overlap, each pixel is decided among all.
            every = self.tracker.settings.non_overlap_masks
            due = [i for i, p in self._progress.items() if every or p.next(reverse) == index]
            try:
                masks = self._track(index, due, reverse=reverse)
            except IndexError:  # the video has fewer frames than its header says, and its length is now known
                continue
            for i in due:
                self._progress[i].passed(index, reverse)
            yield masks

    def _add(self, index: int, prompt: Prompt) -> FrameMasks:
        self._check_frame(index)
        known = self._progress.get(prompt.object_id)
        reverse = known is not None and index in known.reversed
        masks = self._track(index, (prompt.object_id,), (prompt,), reverse)
        if known is None:
            known = self._progress[prompt.object_id] = _Progress(index, index)
        else:
            known.prompted(index)
        if index not in self.tracker.state.objects[prompt.object_id].prompted:
            known.passed(index, reverse)  # a correction that is no prompt: tracking the frame again would undo it
        return masks

    def _track(
        self, index: int, object_ids: Collection[int], prompts: Sequence[Prompt] = (), reverse: bool = False
    ) -> FrameMasks:
        rgb = None if self.tracker.holds(index) else self.frames[index]
        return self.tracker.track(rgb, frame_index=index, prompts=prompts, reverse=reverse, object_ids=object_ids)

    def _check_frame(self, index: int, name: str = "frame_idx") -> None:
        if not 0 <= index < len(self.frames):
            raise UsageError(f"`{name}` is {index}, but the video has frames 0 to {len(self.frames) - 1}")
