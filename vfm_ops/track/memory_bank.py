"""SAM 2's memory of one object: what is kept, which part of it a frame attends to, and what is thrown away.

The method (Ravi et al. 2024, "SAM 2", section 4 and appendix C): a frame attends to the memories of all prompted frames,
of the `slots - 1` frames before it, and to one object pointer for each of the last `max_pointers` frames. Nothing
else of the past is ever read again, so nothing else is kept: the bank of an object has a fixed size, whatever the
length of the video.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.track.intervals import FrameIntervals
from vfm_ops.track.prompts import Clicks


@dataclass(frozen=True)
class BankPolicy:
    """What a bank keeps.

    slots: memory slots of the model, prompted frames' slot included (7: six recent frames).
    max_pointers: frames whose object pointers are attended to (16, the frame itself included).
    max_selected: prompted frames that one frame attends to, nearest first; -1 for all (the model's own setting).
    history: frames kept beyond those. A correction up to `history` frames back then sees exactly the memories, and the
        mask, that it would see if nothing had been evicted. The default is a little over a second of video: what a
        person who watches the tracking notices, and goes back for. It costs 0.8 MB a frame and object at 1024 pixels;
        a program that never goes back sets 0.
    around_prompts: also keep the frames around each prompted frame (`history` aside), so that tracking away from a
        prompt in the other direction, after a pass in the first one, still sees them.
    max_prompted: most prompted frames kept for an object; None keeps all, 16 or so suits a detector that prompts again
        every second.
    prompted_policy: which ones go when there are more: `first_and_recent` keeps the very first and the latest,
        `recent` the latest.
    """

    slots: int = 7
    max_pointers: int = 16
    max_selected: int = -1
    history: int = 32
    around_prompts: bool = False
    max_prompted: int | None = None
    prompted_policy: Literal["first_and_recent", "recent"] = "first_and_recent"

    def __post_init__(self) -> None:
        if self.history < 0:
            raise UsageError(f"history must be 0 or more frames, not {self.history}")
        if self.max_prompted is not None and self.max_prompted < 1:
            raise UsageError(f"max_prompted must be at least 1 frame, not {self.max_prompted}")
        if self.prompted_policy not in ("first_and_recent", "recent"):
            raise UsageError(f"prompted_policy must be first_and_recent or recent, not {self.prompted_policy!r}")


@dataclass
class FrameMemory:
    """What one frame leaves behind for one object. Tensors are never written to again, so that copies may share them.

    pointer_C: object pointer, in the dtype of the network. features_LM: spatial memory (h * w, memory dim), bfloat16;
    None once only the pointer can still be read. score: object score logit. iou: predicted IoU of the mask. logits_HW:
    mask logits: of prompted frames (returned as they are when the frame is seen again), and of recent ones with spatial
    memory where corrections are to see them. clicks: what was clicked.
    """

    pointer_C: Tensor
    features_LM: Tensor | None
    score: float
    iou: float
    logits_HW: Tensor | None = None
    clicks: Clicks | None = None

    def move(self, device: str | torch.device) -> None:
        """Puts its tensors on a device."""
        self.pointer_C = self.pointer_C.to(device)
        self.features_LM = None if self.features_LM is None else self.features_LM.to(device)
        self.logits_HW = None if self.logits_HW is None else self.logits_HW.to(device)

    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = [t for t in (self.pointer_C, self.features_LM, self.logits_HW) if t is not None]
        return sum(t.untyped_storage().nbytes() for t in tensors)


def nearest_prompted(frame_index: int, prompted: Collection[int], limit: int) -> list[int]:
    """The prompted frames that a frame attends to: all, or the `limit` nearest with one on either side among them.

    limit: -1 for all. Returns them in the order of `prompted`, or, when there are more, the nearest before, the
    nearest at or after, then the others by distance.
    """
    if limit == -1 or len(prompted) <= limit:
        return list(prompted)
    before = max((t for t in prompted if t < frame_index), default=None)
    after = min((t for t in prompted if t >= frame_index), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in prompted if t not in chosen), key=lambda t: abs(t - frame_index))
    return chosen + rest[: max(0, limit - len(chosen))]


def select_memory_frames(
    frame_index: int, prompted: Collection[int], recent: Collection[int], reverse: bool, policy: BankPolicy
) -> list[tuple[int, int]]:
    """The (temporal position, frame) pairs whose spatial memories a frame attends to (SAM 2, section 4).

    Position 0 is a prompted frame's; k = slots - 1 ... 1 is the frame k steps back (or ahead, in reverse). A prompted
    frame that was not among the nearest still counts as a recent one.
    """
    selected = nearest_prompted(frame_index, prompted, policy.max_selected)
    pairs = [(0, t) for t in selected]
    for offset in range(policy.slots - 1, 0, -1):
        t = frame_index + offset if reverse else frame_index - offset
        if t in recent or (t in prompted and t not in selected):
            pairs.append((offset, t))
    return pairs


def select_pointer_frames(
    frame_index: int, prompted: Collection[int], recent: Collection[int], reverse: bool, policy: BankPolicy
) -> list[tuple[int, int]]:
    """The (distance, frame) pairs whose object pointers a frame attends to: prompted ones of the past, then recent.

    A prompted frame that lies ahead (in the direction of tracking) gives no pointer: in training there is none.
    """
    sign = -1 if reverse else 1
    pairs = [(sign * (frame_index - t), t) for t in prompted if sign * (frame_index - t) >= 0]
    steps = ((d, frame_index - sign * d) for d in range(1, policy.max_pointers))
    return pairs + [(d, t) for d, t in steps if t in recent]


@dataclass
class ObjectBank:
    """The memories of one object. prompted and recent: frame index -> memory, in order of writing."""

    prompted: dict[int, FrameMemory] = field(default_factory=dict)
    recent: dict[int, FrameMemory] = field(default_factory=dict)
    tracked: FrameIntervals = field(default_factory=FrameIntervals)

    def write(self, frame_index: int, memory: FrameMemory, prompted: bool) -> None:
        """Stores a frame's memory, replacing what the frame had left before."""
        if prompted:
            self.recent.pop(frame_index, None)
            self.prompted[frame_index] = memory
        else:
            self.recent[frame_index] = memory
            self.tracked.add(frame_index)

    def memory_at(self, frame_index: int) -> FrameMemory | None:
        """The frame's memory while it is held."""
        return self.prompted.get(frame_index) or self.recent.get(frame_index)

    def clear_prompt(self, frame_index: int) -> None:
        """Takes the prompt of a frame back: what it left is a memory like its neighbours' from then on."""
        memory = self.prompted.pop(frame_index, None) or self.recent.get(frame_index)
        if memory is not None:
            memory.clicks = None
            self.recent[frame_index] = memory
            self.tracked.discard(frame_index)

    def clear_around(self, frame_index: int, slots: int) -> None:
        """Forgets the frames at most `slots` before or after a prompted one, which may show what the prompt corrects."""
        for t in [t for t in self.recent if abs(t - frame_index) <= slots]:
            del self.recent[t]

    def evict(self, frame_index: int, policy: BankPolicy) -> None:
        """Drops what no frame next to `frame_index` will read; distances count on both sides."""
        self.evict_prompted(policy)
        anchors = list(self.prompted) if policy.around_prompts else []
        for t in list(self.recent):
            distance = min([abs(t - frame_index) - policy.history, *(abs(t - a) for a in anchors)])
            if distance > policy.max_pointers - 1:
                del self.recent[t]
            elif distance > policy.slots - 1:
                self.recent[t].features_LM = self.recent[t].logits_HW = None

    def without(self, frame_index: int) -> ObjectBank:
        """A view of the bank that lacks one prompted frame."""
        if frame_index not in self.prompted:
            return self
        prompted = {t: memory for t, memory in self.prompted.items() if t != frame_index}
        return ObjectBank(prompted, self.recent, self.tracked)

    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(m.nbytes() for frames in (self.prompted, self.recent) for m in frames.values())

    def copy(self) -> ObjectBank:
        """A copy that later writes and evictions leave alone; it shares the tensors."""
        return ObjectBank(_copy_frames(self.prompted), _copy_frames(self.recent), self.tracked.copy())

    def evict_prompted(self, policy: BankPolicy) -> None:
        """Drops prompted frames beyond `max_prompted`."""
        if policy.max_prompted is None or len(self.prompted) <= policy.max_prompted:
            return
        written = list(self.prompted)
        first = written[:1] if policy.prompted_policy == "first_and_recent" and policy.max_prompted > 1 else []
        latest = written[len(written) - (policy.max_prompted - len(first)) :]
        self.prompted = {t: self.prompted[t] for t in [*first, *latest]}


def _copy_frames(frames: dict[int, FrameMemory]) -> dict[int, FrameMemory]:
    return {t: FrameMemory(**vars(m)) for t, m in frames.items()}
