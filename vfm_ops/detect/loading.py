"""One string in, one detector out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfm_ops.detect.family import DetectorFamily
from vfm_ops.errors import UsageError
from vfm_ops.models.registry import families, parse_spec
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.torch_state import keeps_torch_state

if TYPE_CHECKING:
    from vfm_ops.detect.base import Detector
    from vfm_ops.models.runtime import Precision, RuntimeName


def detector_classes() -> dict[str, type[Detector]]:
    """The class of every family of detectors; imports their libraries, loads nothing."""
    return {f.name: f.detector() for f in families("detect") if isinstance(f, DetectorFamily)}


@keeps_torch_state()
def load_detector(
    spec: str,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    multi_label: bool = False,
    runtime: RuntimeName = "auto",
) -> Detector:
    """Load a detector by its spec, `family:name-or-path`.

    `grounding-dino:`, `owlvit:`, `owlv2:` and `omdet-turbo:` take a folder saved by transformers, or a hub id;
    `yolo-world:` takes a weights file or a folder (see `vfm_ops.detect.yolo_world`). device: auto, cpu, cuda, cuda:N.
    precision: auto (float32 on a CPU, bf16 on a card), exact (float32), bf16, fp16. batch_size: images of one forward pass.
    multi_label: a box is told under every prompt that it scores enough for, and not under the best alone; `yolo-world:` only,
    whose official head does so. runtime: on a CPU, of the part that sees the pictures, where it takes them in one shape (see
    `compile_module`); the other parts run on torch.

    Raises UsageError for an unknown family, a checkpoint of another architecture, or several labels where a family has
    one, WeightsUnavailable when the weights are neither on disk nor to be had.
    """
    family, _ = parse_spec(spec, "detect")
    check_multi_label(spec, multi_label)
    checkpoint = find_checkpoint(spec, "detect")
    assert isinstance(family, DetectorFamily)

    import torch

    from vfm_ops.models.checkpoint import remembered_digest
    from vfm_ops.models.device import autocast_dtype, resolve_device

    where = torch.device(resolve_device(device))
    detector = family.detector().from_checkpoint(checkpoint, where, autocast_dtype(precision, where.type), batch_size)
    detector.multi_label = multi_label
    if where.type == "cpu":  # a card computes all of it under autocast
        detector.compile_images(runtime, "exact" if precision == "auto" else precision, remembered_digest(checkpoint))
    return detector


def check_multi_label(spec: str, multi_label: bool) -> None:
    """Raise UsageError when several labels a box are asked of a family that has one. Loads nothing."""
    family, _ = parse_spec(spec, "detect")
    if multi_label and not (isinstance(family, DetectorFamily) and family.multi_label):
        able = ", ".join(f.name for f in families("detect") if isinstance(f, DetectorFamily) and f.multi_label)
        raise UsageError(f"multi_label is of {able}: a box of {family.name} has one label")
