"""One string in, one detector out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfm_ops.detect.family import DetectorFamily
from vfm_ops.models.registry import families, parse_spec
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.torch_state import keeps_torch_state

if TYPE_CHECKING:
    from vfm_ops.detect.base import Detector


def detector_classes() -> dict[str, type[Detector]]:
    """The class of every family of detectors; imports their libraries, loads nothing."""
    return {f.name: f.detector() for f in families("detect") if isinstance(f, DetectorFamily)}


@keeps_torch_state()
def load_detector(spec: str, *, device: str = "auto", precision: str = "auto", batch_size: int = 8) -> Detector:
    """Load a detector by its spec, `family:name-or-path`.

    `grounding-dino:`, `owlvit:`, `owlv2:` and `omdet-turbo:` take a folder saved by transformers, or a hub id;
    `yolo-world:` takes a weights file or a folder (see `vfm_ops.detect.yolo_world`). device: auto, cpu, cuda, cuda:N.
    precision: auto, exact (float32), bf16, fp16. batch_size: images of one forward pass.

    Raises UsageError for an unknown family or a checkpoint of another architecture, WeightsUnavailable when the weights
    are neither on disk nor to be had.
    """
    family, _ = parse_spec(spec, "detect")
    checkpoint = find_checkpoint(spec, "detect")
    assert isinstance(family, DetectorFamily)

    import torch

    from vfm_ops.models.device import autocast_dtype, resolve_device

    where = torch.device(resolve_device(device))
    return family.detector().from_checkpoint(checkpoint, where, autocast_dtype(precision, where.type), batch_size)
