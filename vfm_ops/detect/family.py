"""What a family of detectors says of itself; `families/` has one file each. No model library is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfm_ops.models.registry import Family

if TYPE_CHECKING:
    from vfm_ops.detect.base import Detector


@dataclass(frozen=True, kw_only=True)
class DetectorFamily(Family):
    """A family of detectors. detector: gives its class, a `Detector`; called when one is wanted, and may import torch.
    multi_label: whether a box of its may be told under several prompts, where that is asked for.
    """

    tasks: tuple[str, ...] = ("detect",)
    detector: Callable[[], type[Detector]]
    multi_label: bool = False
