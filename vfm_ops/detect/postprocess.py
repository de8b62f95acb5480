"""From candidate boxes to detections: threshold per prompt, class-aware NMS, clipping, a limit. On torch tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vfm_ops.detect.types import Detections
from vfm_ops.errors import VfmError

if TYPE_CHECKING:
    import torch


@dataclass
class Candidates:
    """All that a model proposes on one image: boxes (Q, 4) xyxy in pixels, scores (Q,), prompt (Q,) long."""

    boxes: torch.Tensor
    scores: torch.Tensor
    prompt: torch.Tensor


def cxcywh_to_pixels(boxes_Q4: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Relative centre boxes in [0, 1] -> xyxy in pixels of a width x height frame; float (Q, 4)."""
    import torch

    cx, cy, w, h = boxes_Q4.float().unbind(-1)
    corners = torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)
    return corners * corners.new_tensor([width, height, width, height])


def merge(passes: list[Candidates]) -> Candidates:
    """One set of candidates from the passes over parts of a long vocabulary."""
    import torch

    if len(passes) == 1:
        return passes[0]
    return Candidates(*(torch.cat([getattr(p, f) for p in passes]) for f in ("boxes", "scores", "prompt")))


def select(
    found: Candidates,
    prompts: list[str],
    threshold_P: np.ndarray,
    size: tuple[int, int],
    nms_iou: float | None,
    max_detections: int,
    clip: bool,
) -> Detections:
    """Keep what scores above its prompt's threshold, suppress overlaps within a prompt, clip to the image, best first.

    size: (height, width) of the image. nms_iou: None switches NMS off. Raises VfmError when the model gave NaN.
    """
    import torch
    from torchvision.ops import batched_nms

    scores, boxes, prompt = found.scores.float(), found.boxes.float(), found.prompt
    if not bool(torch.isfinite(scores).all() and torch.isfinite(boxes).all()):
        raise VfmError("the detector's output holds NaN or infinity: the weights are damaged, or precision is too low")
    keep = scores > torch.from_numpy(threshold_P).to(scores.device)[prompt]
    boxes, scores, prompt = boxes[keep], scores[keep], prompt[keep]
    if nms_iou is not None:
        order = batched_nms(boxes, scores, prompt, nms_iou)
    else:
        order = torch.argsort(scores, descending=True, stable=True)
    boxes, scores, prompt = boxes[order], scores[order], prompt[order]
    if clip:
        height, width = size
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, prompt = boxes[inside], scores[inside], prompt[inside]
    first = slice(0, max_detections)
    return Detections(
        boxes[first].cpu().numpy().astype(np.float32),
        scores[first].cpu().numpy().astype(np.float32),
        prompt[first].cpu().numpy().astype(np.int64),
        tuple(prompts),
    )
