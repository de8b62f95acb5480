"""The whole state of a tracked video, and its form on disk: one safetensors file with a JSON header.

    metadata["vfm_tracker"]          JSON: version, weights (fingerprint), settings, size, last_frame, seen, and for
                                     each object its frames, scores, clicks and tracked intervals
    {object}/{kind}/pointers         (frames, C) in the dtype of the network
    {object}/{kind}/features         (frames that have them, L, M) bfloat16
    {object}/{kind}/logits           (frames that have them, h, w) float32, or the network's where that is higher

kind is `prompted` or `recent`. With it a video goes on in another process, bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.track.intervals import FrameIntervals
from vfm_ops.track.memory_bank import FrameMemory, ObjectBank
from vfm_ops.track.prompts import Clicks

_HEADER = "vfm_tracker"
_VERSION = 1


@dataclass
class TrackerState:
    """All that a tracker knows of its video.

    objects: object id -> bank, in order of first prompt. size: (height, width) of the first frame. last_frame: index of
    the frame tracked last. seen: frames that were sent.
    """

    objects: dict[int, ObjectBank] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    last_frame: int | None = None
    seen: FrameIntervals = field(default_factory=FrameIntervals)

    def copy(self) -> TrackerState:
        """A copy that shares tensors (nothing writes into them) and nothing else."""
        objects = {i: bank.copy() for i, bank in self.objects.items()}
        return TrackerState(objects, self.size, self.last_frame, self.seen.copy())

    def on(self, device: str | torch.device) -> TrackerState:
        """The same state with its tensors on another device."""
        for bank in self.objects.values():
            for memory in [*bank.prompted.values(), *bank.recent.values()]:
                memory.move(device)
        return self


def state_to_bytes(state: TrackerState, fingerprint: str, extra: dict[str, Any] | None = None) -> bytes:
    """Serialises a state. fingerprint: of the weights (`Sam2Network.fingerprint`). extra: JSON of the caller's own."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    objects = []
    for object_id, bank in state.objects.items():
        frames = {}
        for kind, memories in (("prompted", bank.prompted), ("recent", bank.recent)):
            frames[kind] = [_describe(t, memory) for t, memory in memories.items()]
            tensors.update(_stack(f"{object_id}/{kind}", list(memories.values())))
        objects.append({"id": object_id, "tracked": bank.tracked.intervals, **frames})
    header = {
        "version": _VERSION,
        "weights": fingerprint,
        "size": state.size,
        "last_frame": state.last_frame,
        "seen": state.seen.intervals,
        "objects": objects,
        "extra": extra or {},
    }
    return save(tensors, metadata={_HEADER: json.dumps(header)})


def state_from_bytes(data: bytes, fingerprint: str) -> tuple[TrackerState, dict[str, Any]]:
    """The state and the caller's own JSON; UsageError for something else, another version or other weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
        tensors = load(data)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"these {len(data)} bytes are no saved tracker state ({type(error).__name__}: {error})"
        ) from error
    if header["version"] != _VERSION:
        raise UsageError(f"the tracker state has version {header['version']} and this program reads {_VERSION}")
    if header["weights"] != fingerprint:
        raise UsageError(
            f"the tracker state was saved with other weights ({header['weights']}, loaded: {fingerprint}): "
            "load the checkpoint that it was made with, or track the video again"
        )
    objects = {entry["id"]: _bank(entry, tensors) for entry in header["objects"]}
    size = tuple(header["size"]) if header["size"] else None
    return TrackerState(objects, size, header["last_frame"], FrameIntervals(header["seen"])), header["extra"]


def _describe(frame_index: int, memory: FrameMemory) -> dict[str, Any]:
    clicks = None
    if memory.clicks is not None:
        clicks = {"points": memory.clicks.points.tolist(), "labels": memory.clicks.labels.tolist()}
    return {
        "frame": frame_index,
        "score": memory.score,
        "iou": memory.iou,
        "features": memory.features_LM is not None,
        "logits": memory.logits_HW is not None,
        "clicks": clicks,
    }


def _stack(prefix: str, memories: list[FrameMemory]) -> dict[str, Tensor]:
    named = {
        "pointers": [m.pointer_C for m in memories],
        "features": [m.features_LM for m in memories if m.features_LM is not None],
        "logits": [m.logits_HW for m in memories if m.logits_HW is not None],
    }
    return {f"{prefix}/{name}": torch.stack(rows).cpu() for name, rows in named.items() if rows}


def _bank(entry: dict[str, Any], tensors: dict[str, Tensor]) -> ObjectBank:
    banks: dict[str, dict[int, FrameMemory]] = {}
    for kind in ("prompted", "recent"):
        rows = {
            name: iter(tensors.get(f"{entry['id']}/{kind}/{name}", torch.zeros(0)).unbind(0))
            for name in ("pointers", "features", "logits")
        }
        banks[kind] = {
            f["frame"]: FrameMemory(
                next(rows["pointers"]).clone(),
                next(rows["features"]).clone() if f["features"] else None,
                f["score"],
                f["iou"],
                next(rows["logits"]).clone() if f["logits"] else None,
                _clicks(f["clicks"]),
            )
            for f in entry[kind]
        }
    return ObjectBank(banks["prompted"], banks["recent"], FrameIntervals(entry["tracked"]))


def _clicks(clicks: dict[str, Any] | None) -> Clicks | None:
    if clicks is None:
        return None
    points = np.asarray(clicks["points"], np.float32).reshape(-1, 2)
    return Clicks(points, np.asarray(clicks["labels"], np.int64))
