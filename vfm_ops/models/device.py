"""The one device picker, and what a device computes in: every model is placed by `resolve_device`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "exact", "bf16", "fp16")
# Where a driver shows its cards: Linux, and Linux inside of Windows. Without either, nobody waits for torch to look for one.
CARD_NODES = ("/dev/nvidiactl", "/dev/dxg")


def resolve_device(device: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` to one of the latter. torch is imported only where a card may be present.

    Raises UsageError for an unknown device, or `cuda` without a usable card.
    """
    if device == "cpu":
        return "cpu"
    if device != "auto" and device.split(":")[0] != "cuda":
        raise UsageError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N")
    has_card = False
    shown = any(Path(node).exists() for node in CARD_NODES) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if device != "auto" or shown:
        import torch

        has_card = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_card else "cpu"
    if not has_card:
        raise UsageError(f"device {device!r} was asked for but torch sees no CUDA device: use device=cpu or auto")
    return device


def device_to_describe(device: str) -> str:
    """Where a model is described (its dimension, view and digest, which are the same everywhere) that is to run on `device`.

    `cpu` in place of a card that is not here: a cluster's driver, and its decoders, may stand on nodes that have none.
    """
    try:
        resolve_device(device)
    except UsageError:
        return "cpu" if device.split(":")[0] == "cuda" else device
    return device


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def autocast_dtype(precision: str, device_type: str) -> torch.dtype | None:
    """The dtype to autocast to; None is float32. `auto` lowers precision on a card only, where it pays.

    Raises UsageError for a precision other than auto, exact, bf16, fp16.
    """
    import torch

    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown: one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        if device_type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"exact": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
