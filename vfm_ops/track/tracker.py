"""A streaming SAM 2 tracker: frames come in one by one, masks go out, and memory stays flat.

A `Sam2Network` holds the weights and serves any number of videos; a `Sam2Tracker` is one video: a bank of memories for
each object, the size of the frames, and which frames have been seen. It never holds a frame.

What a caller has to send again:
- A frame's features are kept for the last `feature_cache` frames: prompts on those need no pixels
  (`track(None, frame_index=f, prompts=...)`). For any other frame, send its pixels again.
- A correction on frame f sees the mask that it corrects and the memories around f, as far as they are still in the bank:
  up to `history` frames back they are what they would be if nothing had ever been evicted. Farther back it goes by what
  was prompted. Send frames f + 1, f + 2, ... again to carry it on.
- Further back: `restore` a `snapshot` taken at or before f, and send the frames from there.
- Tracking backward: send frames in descending order with `reverse=True`. To track both ways from one prompt, take a
  snapshot after the prompt, go one way, restore it, go the other.

`vfm_ops.track.session` does all of this for a video whose frames can be had again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.track.frames import FrameMasks, check_resolution, checked_rgb, squared
from vfm_ops.track.memory_bank import BankPolicy, FrameMemory, ObjectBank
from vfm_ops.track.network import DecodedMasks, ImageEncoder, ImageFeatures, Sam2Network
from vfm_ops.track.packing import pack_memories
from vfm_ops.track.prompts import Clicks, Prompt, checked_mask, clicks_in_model_pixels
from vfm_ops.track.regions import FILLED_LOGIT, mend_masks
from vfm_ops.track.state import TrackerState, state_from_bytes, state_to_bytes


@dataclass(frozen=True)
class TrackerSettings:
    """bank: what is remembered (its slots, pointers and selection are taken from the checkpoint).

    objects_at_once: objects in one batch; it bounds the memory that a frame needs. max_objects: more than so many
    objects are refused. feature_cache: frames whose image features are kept. corrections_are_prompts: a correction on
    a frame that was tracked already is kept for ever like a first prompt, which is how SAM 2 is trained, and what a user
    means: it is still there when tracking passes the frame again, and when the object comes back into sight long after.
    False makes it a memory like its neighbours, gone after 16 frames (as transformers has it). feed_previous_masks: clicks
    and boxes on a frame that has a mask correct that mask, rather than start from nothing (as Meta's predictor has it; in
    transformers only by a private way). clear_memories_around_prompts: a prompt makes the tracker forget the frames at
    most `slots` away, which may show what it corrects. fill_hole_area: holes of so many pixels of the logits are filled;
    memories see them as they are. non_overlap_masks: where masks overlap, the pixel is the more certain object's.
    binarise_together: when any object is prompted on a frame, the memories of all its objects are made of hard masks (as
    SAM 2 and transformers have it).
    """

    bank: BankPolicy = field(default_factory=BankPolicy)
    objects_at_once: int = 32
    max_objects: int = 256
    feature_cache: int = 1
    corrections_are_prompts: bool = True
    feed_previous_masks: bool = True
    clear_memories_around_prompts: bool = False
    fill_hole_area: int = 0
    non_overlap_masks: bool = False
    binarise_together: bool = True

    def __post_init__(self) -> None:
        for name in ("objects_at_once", "max_objects", "feature_cache"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.fill_hole_area < 0:
            raise UsageError(f"fill_hole_area must be 0 or more pixels, not {self.fill_hole_area}")


@dataclass
class _Request:
    """One object of the frame at hand: `fresh` when it is prompted on a frame where it was not tracked before. previous:
    mask logits (h, w) that clicks correct."""

    object_id: int
    clicks: Clicks | None = None
    mask: np.ndarray | None = None
    fresh: bool = False
    previous: Tensor | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether a user says something about the object on this frame."""
        return self.clicks is not None or self.mask is not None

    @property
    def batch_key(self) -> tuple[bool, bool, bool, int]:
        """Objects with the same key go through the network as one batch."""
        points = -1 if self.clicks is None else len(self.clicks.labels)
        return self.mask is not None, self.fresh, self.previous is not None, points


class Sam2Tracker:
    """Tracks the objects of one video.

    network: weights. settings: see `TrackerSettings`. image_encoder: a callable like `network.image_encoder` (say, the
    same module in a faster runtime): uint8 (1, S, S, 3) -> (fine, middle, top).
    """

    def __init__(
        self,
        network: Sam2Network,
        settings: TrackerSettings | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        config = network.config
        settings = settings or TrackerSettings()
        bank = replace(
            settings.bank,
            slots=config.num_maskmem,
            max_pointers=config.max_object_pointers_in_encoder,
            max_selected=config.max_cond_frame_num,
        )
        self.network = network
        self.settings = replace(settings, bank=bank)
        self.image_encoder = image_encoder
        self.state = TrackerState()
        self._features: OrderedDict[int, ImageFeatures] = OrderedDict()
        self._last_size: tuple[int, int] | None = None

    @property
    def object_ids(self) -> list[int]:
        """Living objects in the order in which they were first prompted."""
        return list(self.state.objects)

    def nbytes(self) -> int:
        """Bytes of all memories held; features of the last frame aside."""
        return sum(bank.nbytes() for bank in self.state.objects.values())

    @torch.inference_mode()
    def track(
        self,
        rgb: np.ndarray | None,
        *,
        frame_index: int | None = None,
        prompts: Sequence[Prompt] = (),
        reverse: bool = False,
        object_ids: Collection[int] | None = None,
    ) -> FrameMasks:
        """Tracks objects onto one frame, and takes the prompts that are made on it.

        rgb: uint8 (H, W, 3), or None for a frame whose features are still held. frame_index: counts frames as they are
        sent, consecutive ones 1 apart (default: the next one). reverse: frames come in descending order. object_ids: those
        that are tracked (default: all); the others keep what they have. Objects whose prompts were all cleared are left out.
        Raises UsageError for a bad prompt or frame, before anything is changed; MediaError when the video changes shape.
        """
        index = self._frame_index(frame_index, reverse)
        size = self._checked_size(rgb, index)
        requests = self._requests(prompts, index, size, object_ids)
        features = self._features_of(rgb, index)
        self.state.size = self.state.size or size
        self.state.last_frame = index
        self._last_size = size
        self.state.seen.add(index)
        for request in requests:
            self.state.objects.setdefault(request.object_id, ObjectBank())
        found = self._track_objects(features, requests, index, reverse)
        return self._answer(found, index, size, object_ids)

    @torch.inference_mode()
    def prompt(self, prompts: Sequence[Prompt]) -> FrameMasks:
        """Prompts on the frame that was tracked last; the other objects keep what they have. Returns the prompted ones.

        A detector needs to see what is tracked already before it can tell which of its boxes are new: track the frame,
        compare, then prompt here.
        """
        index, size = self._last_frame()
        requests = self._requests(prompts, index, size, ())
        for request in requests:
            self.state.objects.setdefault(request.object_id, ObjectBank())
        found = self._track_objects(self._features[index], requests, index, False)
        return self._rows(found, [r.object_id for r in requests], index, size)

    @torch.inference_mode()
    def preview(self, prompts: Sequence[Prompt]) -> FrameMasks:
        """The masks that prompts on the frame tracked last would give as new objects. Nothing is remembered."""
        index, size = self._last_frame()
        features = self._features[index]
        requests = [replace(self._prompt_request(p, index, size), fresh=True, previous=None) for p in prompts]
        found: dict[int, tuple[Tensor, float, float]] = {}
        for batch in self._batches(requests):
            found.update(_found(batch, self._decode(features, batch, index, False)))
        return self._rows(found, [r.object_id for r in requests], index, size)

    def track_many(
        self, frames: Iterable[np.ndarray], prompts: dict[int, Sequence[Prompt]] | None = None, reverse: bool = False
    ) -> Iterator[FrameMasks]:
        """Tracks frames as they arrive, one at a time. prompts: by frame index, of the frames still to come."""
        for rgb in frames:
            index = self._frame_index(None, reverse)
            yield self.track(rgb, frame_index=index, prompts=(prompts or {}).get(index, ()), reverse=reverse)

    def remove(self, object_id: int) -> None:
        """Forgets an object. Prompting the same id again starts a new object that remembers nothing of it."""
        if object_id not in self.state.objects:
            raise UsageError(f"object {object_id} is not tracked, so it can't be removed: {self.object_ids}")
        del self.state.objects[object_id]

    def clear_prompt(self, object_id: int, frame_index: int) -> None:
        """Takes back what was said of an object on a frame; its mask there is a memory like any other from then on.

        UsageError for an object that is not tracked, or that has no prompt there.
        """
        bank = self.state.objects.get(object_id)
        if bank is None:
            raise UsageError(f"object {object_id} is not tracked, so it has no prompt: {self.object_ids}")
        memory = bank.memory_at(frame_index)
        if frame_index not in bank.prompted and (memory is None or memory.clicks is None):
            raise UsageError(
                f"object {object_id} has no prompt on frame {frame_index}: {sorted(bank.prompted)} have one"
            )
        bank.clear_prompt(frame_index)

    def reset(self) -> None:
        """Forgets all objects, prompts and frames."""
        self.state = TrackerState()
        self._features.clear()

    def holds(self, frame_index: int) -> bool:
        """Whether a frame's image features are held, so that `track` needs no pixels for it."""
        return frame_index in self._features

    def snapshot(self) -> TrackerState:
        """The state as it is now; cheap (tensors are shared), and later frames leave it alone."""
        return self.state.copy()

    def restore(self, snapshot: TrackerState) -> None:
        """Goes back to a snapshot; frames after it are sent again."""
        self.state = snapshot.copy()
        self._features.clear()

    def to_bytes(self, extra: dict[str, Any] | None = None) -> bytes:
        """The whole state as safetensors with a JSON header; continues elsewhere, bit for bit. extra: JSON of the
        caller's own, which `vfm_ops.track.state.state_from_bytes` gives back under "extra"."""
        header = {"settings": asdict(self.settings), "extra": extra}
        return state_to_bytes(self.state, self.network.fingerprint(), header)

    @classmethod
    def from_bytes(cls, network: Sam2Network, data: bytes, image_encoder: ImageEncoder | None = None) -> Sam2Tracker:
        """A tracker that goes on where `to_bytes` was called; UsageError for other weights or no state at all."""
        state, extra = state_from_bytes(data, network.fingerprint())
        # A state of a version that had no such setting goes on as it began.
        settings = {"feed_previous_masks": False, **extra["settings"]}
        settings["bank"] = BankPolicy(**settings["bank"])
        tracker = cls(network, TrackerSettings(**settings), image_encoder)
        tracker.state = state.on(network.device)
        return tracker

    def _frame_index(self, frame_index: int | None, reverse: bool) -> int:
        if frame_index is None:
            last = self.state.last_frame
            return 0 if last is None else last + (-1 if reverse else 1)
        if frame_index < 0:
            raise UsageError(f"frame_index must be 0 or more, not {frame_index}")
        return frame_index

    def _checked_size(self, rgb: np.ndarray | None, index: int) -> tuple[int, int]:
        if rgb is None:
            if index in self._features and self.state.size is not None:
                return self.state.size
            reason = "was never sent" if index not in self.state.seen else "is no longer held"
            raise UsageError(f"frame {index} {reason}: pass its pixels with frame_index={index} and the prompts")
        height, width = checked_rgb(rgb).shape[:2]
        check_resolution(self.state.size, (height, width), index)
        return height, width

    def _requests(
        self, prompts: Sequence[Prompt], index: int, size: tuple[int, int], object_ids: Collection[int] | None = None
    ) -> list[_Request]:
        """One request for every prompted object, and every other of `object_ids` (None: that lives) that is to be tracked.

        Nothing is changed yet, so that a bad prompt costs nothing.
        """
        prompted = {}
        for prompt in prompts:
            if prompt.object_id in prompted:
                raise UsageError(f"object {prompt.object_id} has two prompts on frame {index}: join them into one")
            prompted[prompt.object_id] = self._prompt_request(prompt, index, size)
        count = len(self.state.objects.keys() | prompted.keys())
        if count > self.settings.max_objects:
            raise UsageError(
                f"frame {index} would have {count} objects and the limit is {self.settings.max_objects}: "
                "prompt fewer, remove some, or raise max_objects (memory grows with it)"
            )
        kept = [
            _Request(i)
            for i, bank in self.state.objects.items()
            if i not in prompted
            and index not in bank.prompted
            and bank.prompted
            and (object_ids is None or i in object_ids)
        ]
        return kept + list(prompted.values())

    def _prompt_request(self, prompt: Prompt, index: int, size: tuple[int, int]) -> _Request:
        bank = self.state.objects.get(prompt.object_id)
        # An object that is prompted nowhere else remembers nothing that could be asked.
        fresh = bank is None or index not in bank.tracked or not bank.prompted.keys() - {index}
        clicks = clicks_in_model_pixels(prompt, *size, self.network.image_size)
        if clicks is None:
            return _Request(prompt.object_id, mask=checked_mask(prompt, *size), fresh=fresh)
        before = bank.memory_at(index) if bank is not None else None
        if before is not None and before.clicks is not None and prompt.append:
            clicks = before.clicks.followed_by(clicks)
        previous = before.logits_HW if before is not None and self.settings.feed_previous_masks else None
        return _Request(prompt.object_id, clicks=clicks, fresh=fresh, previous=previous)

    def _features_of(self, rgb: np.ndarray | None, index: int) -> ImageFeatures:
        if rgb is None:
            return self._features[index]
        square = squared(rgb, self.network.image_size, self.network.device)
        features = self.network.encode_image(square, self.image_encoder)
        self._features.pop(index, None)
        while len(self._features) >= self.settings.feature_cache:
            self._features.popitem(last=False)
        self._features[index] = features
        return features

    def _track_objects(
        self, features: ImageFeatures, requests: list[_Request], index: int, reverse: bool
    ) -> dict[int, tuple[Tensor, float, float]]:
        """Runs all objects in batches and stores their memories. Returns (mask logits, object logit, IoU) by object."""
        prompted = any(r.is_prompt for r in requests)
        found: dict[int, tuple[Tensor, float, float]] = {}
        for batch in self._batches(requests):
            decoded = self._decode(features, batch, index, reverse)
            hard = prompted if self.settings.binarise_together else batch[0].is_prompt
            memory_NLM = self.network.encode_memory(features, decoded.full_N1SS, decoded.score_N, hard)
            mended = mend_masks(decoded.logits_Nhw, self.settings.fill_hole_area, filled=FILLED_LOGIT)
            decoded = replace(decoded, logits_Nhw=mended)
            self._remember(batch, decoded, memory_NLM, index)
            found.update(_found(batch, decoded))
        return found

    def _batches(self, requests: list[_Request]) -> Iterator[list[_Request]]:
        """Requests that can go through the network together, at most `objects_at_once`."""
        groups: dict[tuple[bool, bool, bool, int], list[_Request]] = {}
        for request in requests:
            groups.setdefault(request.batch_key, []).append(request)
        at_once = self.settings.objects_at_once
        for group in groups.values():
            yield from (group[start : start + at_once] for start in range(0, len(group), at_once))

    def _answer(
        self,
        found: dict[int, tuple[Tensor, float, float]],
        index: int,
        size: tuple[int, int],
        object_ids: Collection[int] | None,
    ) -> FrameMasks:
        """The masks just made, and as they were those of objects that were prompted on this frame before."""
        around, slots = self.settings.clear_memories_around_prompts, self.settings.bank.slots
        for object_id, bank in self.state.objects.items():
            if (
                object_id in found
                or index not in bank.prompted
                or (object_ids is not None and object_id not in object_ids)
            ):
                continue
            memory = bank.prompted[index]
            assert memory.logits_HW is not None  # prompted frames keep theirs
            found[object_id] = memory.logits_HW, memory.score, memory.iou
            if around:
                bank.clear_around(index, slots)
        return self._rows(found, [i for i in self.object_ids if i in found], index, size)

    def _rows(
        self, found: dict[int, tuple[Tensor, float, float]], ids: list[int], index: int, size: tuple[int, int]
    ) -> FrameMasks:
        rows = [found[i] for i in ids]
        quarter = (self.network.image_size // 4,) * 2
        logits = torch.stack([row[0] for row in rows]).float() if rows else torch.zeros(0, *quarter)
        scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
        ious = torch.tensor([row[2] for row in rows], dtype=torch.float32)
        return FrameMasks(index, ids, logits, scores, ious, size, self.settings.non_overlap_masks)

    def _last_frame(self) -> tuple[int, tuple[int, int]]:
        index = self.state.last_frame
        if index is None or index not in self._features or self._last_size is None:
            raise UsageError("no frame is held to prompt on: track a frame first")
        return index, self._last_size

    def _decode(self, features: ImageFeatures, batch: list[_Request], index: int, reverse: bool) -> DecodedMasks:
        first = batch[0]
        if first.mask is not None:
            return self.network.decode_mask_prompt(features, self._model_masks(batch))
        if first.fresh:
            conditioned = self.network.without_memory(features, len(batch))
        else:
            # What a prompt corrects is given as a mask, not remembered: a frame doesn't attend to itself.
            banks = [self.state.objects[r.object_id].without(index) for r in batch]
            memory = pack_memories(self.network, banks, index, reverse, self.settings.bank)
            conditioned = self.network.with_memory(features, memory)
        clicks = None if first.clicks is None else [r.clicks for r in batch if r.clicks is not None]
        previous = (
            torch.stack([r.previous for r in batch if r.previous is not None]) if first.previous is not None else None
        )
        return self.network.decode(features, conditioned, clicks, self._ambiguous(first), previous)

    def _ambiguous(self, request: _Request) -> bool:
        """Whether three candidates are weighed: for as few points as the checkpoint says (none or one)."""
        config = self.network.config
        points = 0 if request.clicks is None else len(request.clicks.labels)
        allowed = config.multimask_output_in_sam and (request.fresh or config.multimask_output_for_tracking)
        return bool(allowed and config.multimask_min_pt_num <= points <= config.multimask_max_pt_num)

    def _model_masks(self, batch: list[_Request]) -> Tensor:
        """0 / 1 masks (N, 1, S, S): resized with antialiasing and cut at one half."""
        masks = torch.from_numpy(np.stack([r.mask for r in batch if r.mask is not None])).to(self.network.device)
        size = (self.network.image_size, self.network.image_size)
        if tuple(masks.shape[1:]) == size:
            return masks[:, None].float()
        resized = F.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        return (resized >= 0.5).float()

    def _remember(self, batch: list[_Request], decoded: DecodedMasks, memory_NLM: Tensor, index: int) -> None:
        scores, ious = decoded.score_N.tolist(), decoded.iou_N.tolist()
        for row, request in enumerate(batch):
            bank = self.state.objects[request.object_id]
            # What is a prompt stays one, though it be corrected.
            sticks = self.settings.corrections_are_prompts or index in bank.prompted
            prompted = request.fresh or (request.is_prompt and sticks)
            keeps_logits = prompted or self.settings.feed_previous_masks
            # Rows are cloned: a view would keep the whole batch alive for as long as one object remembers the frame.
            memory = FrameMemory(
                decoded.pointer_NC[row].clone(),
                memory_NLM[row].clone(),
                scores[row],
                ious[row],
                decoded.logits_Nhw[row].clone() if keeps_logits else None,
                request.clicks,
            )
            bank.write(index, memory, prompted)
            if request.is_prompt:
                # Going back for a prompt loses nothing of where tracking stands: that frame is still to be gone on from.
                bank.evict_prompted(self.settings.bank)
                if self.settings.clear_memories_around_prompts:
                    bank.clear_around(index, self.settings.bank.slots)
            else:
                bank.evict(index, self.settings.bank)


def _found(batch: list[_Request], decoded: DecodedMasks) -> dict[int, tuple[Tensor, float, float]]:
    rows = zip(decoded.logits_Nhw, decoded.score_N.tolist(), decoded.iou_N.tolist())
    return dict(zip((r.object_id for r in batch), rows))
