"""One string in, one detector out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vfm_ops.errors import UsageError
from vfm_ops.models import DETECT_FAMILIES as FAMILIES

if TYPE_CHECKING:
    from vfm_ops.detect.base import Detector

FAMILY_OF_MODEL_TYPE = {
    "grounding-dino": "grounding-dino",
    "owlvit": "owlvit",
    "owlv2": "owlv2",
    "omdet-turbo": "omdet-turbo",
}


def find_weights(spec: str) -> tuple[str, Path]:
    """Family, and the folder or file of the weights, of a detector's spec; nothing is loaded. Errors: see `load_detector`."""
    family, colon, name = spec.partition(":")
    if family not in FAMILIES or not colon or not name:
        raise UsageError(f"detector {spec!r} is unknown: write FAMILY:NAME-OR-PATH with one of {', '.join(FAMILIES)}")
    if family == "yolo-world":
        from vfm_ops.detect.yolo_world import checkpoint

        return family, checkpoint.find_weights(name)
    from vfm_ops.detect.checkpoints import find_checkpoint

    return family, find_checkpoint(family, name, family, FAMILY_OF_MODEL_TYPE)


def load_detector(spec: str, *, device: str = "auto", precision: str = "auto", batch_size: int = 8) -> Detector:
    """Load a detector by its spec, `family:name-or-path`.

    `grounding-dino:`, `owlvit:`, `owlv2:` and `omdet-turbo:` take a folder saved by transformers, or a hub id;
    `yolo-world:` takes a weights file or a folder (see `vfm_ops.detect.yolo_world`). device: auto, cpu, cuda, cuda:N.
    precision: auto, exact (float32), bf16, fp16. batch_size: images of one forward pass.

    Raises UsageError for an unknown family or a checkpoint of another architecture, WeightsUnavailable when the weights
    are neither on disk nor to be had.
    """
    family, weights = find_weights(spec)

    from vfm_ops.detect.base import pick_autocast, pick_device

    where = pick_device(device)
    autocast = pick_autocast(precision, where)
    if family == "yolo-world":
        from vfm_ops.detect.yolo_world.detector import YoloWorld

        return YoloWorld.from_weights(weights, where, autocast, batch_size)
    if family == "grounding-dino":
        from vfm_ops.detect.grounding_dino import GroundingDino

        return GroundingDino(weights, where, autocast, batch_size)
    if family == "omdet-turbo":
        from vfm_ops.detect.omdet_turbo import OmDetTurbo

        return OmDetTurbo(weights, where, autocast, batch_size)
    from vfm_ops.detect.owl import OwlV2, OwlVit

    return (OwlV2 if family == "owlv2" else OwlVit)(weights, where, autocast, batch_size)
