"""YOLO-World v2 (Cheng et al. 2024, https://arxiv.org/abs/2401.17270): a network of ours for the published weights.

`vfm_ops.detect.yolo_world` holds the network and the detector.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vfm_ops.detect.base import Detector
from vfm_ops.detect.family import DetectorFamily
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models.cards import ModelCard
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.registry import register

SUFFIXES = (".safetensors", ".pth", ".pt")


def find(name: str) -> Checkpoint:
    """The weights file that a spec's path means: the file itself, or the only one in a folder."""
    path = Path(name).expanduser()
    if path.is_file():
        return Checkpoint("file", path.parent, (path,), {})
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES)
        if len(files) == 1:
            return Checkpoint("file", path, (files[0],), {})
        raise UsageError(f"yolo-world:{name} holds {len(files)} weights files: name the one to use")
    raise WeightsUnavailable(
        f"yolo-world:{name}: there is no such file; fetch one where there is a network, such as with `hf download "
        "wondervictor/YOLO-World-V2.1 --local-dir DIR`, and use yolo-world:DIR/FILE.pth"
    )


def _detector() -> type[Detector]:
    from vfm_ops.detect.yolo_world.detector import YoloWorld

    return YoloWorld


def _network(letter: str) -> Callable[[], Any]:
    def build() -> Any:
        from vfm_ops.detect.yolo_world.backbone import SIZES
        from vfm_ops.detect.yolo_world.network import YoloWorldNetwork

        return YoloWorldNetwork(SIZES[letter])

    return build


register(
    DetectorFamily(
        name="yolo-world",
        layout="file",
        find=find,
        detector=_detector,
        multi_label=True,
        cards=tuple(
            ModelCard(
                f"yolo_world_v2_{letter}.pth",
                "boxes from phrases in real time; the network here is our own",
                "network Apache-2.0; published weights GPL-3.0",
                _network(letter),
                place=f"yolo-world:/path/to/yolo_world_v2_{letter}.pth",
            )
            for letter in "sl"
        ),
    )
)
