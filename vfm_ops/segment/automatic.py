"""Every object of an image, without prompts: a grid of points, candidates filtered by confidence, stability and overlap.

The method is SAM's (Kirillov et al. 2023, "Segment Anything", appendix B, automatic mask generation), on one crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfm_ops.errors import UsageError
from vfm_ops.segment.segmenter import EncodedImage, Segmenter
from vfm_ops.track.masks import Rle, encode_rle, mask_box


@dataclass(frozen=True)
class GridSettings:
    """points_per_side: the grid is its square. min_iou: least predicted IoU. min_stability: least stability score, the
    IoU of the mask cut `stability_offset` above and below 0. max_overlap: box IoU above which the less confident of two
    masks goes. min_area: least pixels of a mask. points_at_once: prompts decoded together.
    """

    points_per_side: int = 32
    min_iou: float = 0.88
    min_stability: float = 0.95
    stability_offset: float = 1.0
    max_overlap: float = 0.7
    min_area: int = 0
    points_at_once: int = 64

    def __post_init__(self) -> None:
        if self.points_per_side < 1 or self.points_at_once < 1:
            raise UsageError("points_per_side and points_at_once must be at least 1")


@dataclass(frozen=True)
class AutoMask:
    """One object found. box: xyxy, float32. score: predicted IoU. point: the grid point that gave it."""

    rle: Rle
    box: np.ndarray
    area: int
    score: float
    stability: float
    point: np.ndarray


def point_grid(points_per_side: int, size: tuple[int, int]) -> np.ndarray:
    """float32 (points_per_side^2, 2) xy in pixels: the centres of equal cells, row by row."""
    line = (np.arange(points_per_side, dtype=np.float64) + 0.5) / points_per_side
    x, y = np.meshgrid(line * size[1], line * size[0])
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)


def stability_scores(logits_NHW: Tensor, offset: float) -> Tensor:
    """float32 (N,): pixels above +offset over pixels above -offset; 0 where there are none."""
    inner = (logits_NHW > offset).flatten(1).sum(1)
    outer = (logits_NHW > -offset).flatten(1).sum(1)
    return torch.where(outer > 0, inner / outer.clamp(min=1), 0.0)


@torch.inference_mode()
def generate_masks(
    segmenter: Segmenter, image: np.ndarray | EncodedImage, settings: GridSettings | None = None
) -> list[AutoMask]:
    """All objects of an image (uint8 (H, W, 3), or already encoded), most confident first."""
    settings = settings or GridSettings()
    encoded = image if isinstance(image, EncodedImage) else segmenter.encode(image)
    points = point_grid(settings.points_per_side, encoded.size)
    found: list[AutoMask] = []
    for start in range(0, len(points), settings.points_at_once):
        found += _masks_at(segmenter, encoded, points[start : start + settings.points_at_once], settings)
    return _without_overlap(found, settings.max_overlap)


def _masks_at(
    segmenter: Segmenter, encoded: EncodedImage, points: np.ndarray, settings: GridSettings
) -> list[AutoMask]:
    labels = np.ones((len(points), 1), np.int64)
    candidates = segmenter.segment(encoded, points=points[:, None], labels=labels)
    found = []
    for i, point in enumerate(points):
        sure = candidates.scores_NK[i] > settings.min_iou if settings.min_iou > 0 else torch.ones(3, dtype=torch.bool)
        if not bool(sure.any()):
            continue
        logits_KHW = candidates.logits_on_image(i)
        stability = stability_scores(logits_KHW, settings.stability_offset)
        stable = stability > settings.min_stability if settings.min_stability > 0 else torch.ones_like(sure)
        for k in torch.nonzero(sure.to(stable.device) & stable).flatten().tolist():
            mask = (logits_KHW[k] > 0).cpu().numpy()
            area = int(mask.sum())
            if area > 0 and area >= settings.min_area:
                score = float(candidates.scores_NK[i, k])
                found.append(AutoMask(encode_rle(mask), mask_box(mask), area, score, float(stability[k]), point))
    return found


def _without_overlap(found: list[AutoMask], max_overlap: float) -> list[AutoMask]:
    if not found:
        return []
    from torchvision.ops import nms

    # Boxes of last pixels rather than edges, as in SAM's own filter: what is kept then is the same.
    boxes = torch.from_numpy(np.stack([m.box for m in found])) - torch.tensor([0.0, 0.0, 1.0, 1.0])
    kept = nms(boxes, torch.tensor([m.score for m in found]), max_overlap)
    return [found[i] for i in kept.tolist()]
