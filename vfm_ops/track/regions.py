"""Small holes in masks, and small specks beside them: found by area, mended in the logits (8-connected regions)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

FILLED_LOGIT = 0.1  # of a hole in a video's mask, as in SAM 2: just inside, so that a correction can undo it


def small_regions(mask_HW: np.ndarray, most_area: int) -> np.ndarray:
    """bool (H, W): the 8-connected regions of a bool mask that have at most `most_area` pixels."""
    labels, areas = _regions(mask_HW)
    return (areas <= most_area)[labels] & mask_HW


def without_small_regions(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """A bool mask whose holes, and then whose islands, of fewer than `min_area` pixels are gone, and whether there were any.

    Holes are regions outside of the mask, the picture's edge or not. Of islands that are all too small the largest stays.
    """
    holes = small_regions(~mask_HW, min_area - 1)
    filled = mask_HW | holes
    labels, areas = _regions(filled)
    small = areas < min_area
    small[0] = False  # what is not in the mask
    changed = bool(holes.any() or small.any())
    if small[1:].all() and len(areas) > 1:
        small[1 + int(np.argmax(areas[1:]))] = False
    return filled & ~small[labels], changed


def _regions(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 (H, W), the region that each pixel is of, and int32 (regions,), their areas; 0 is what is not in the mask."""
    pixels = np.ascontiguousarray(mask_HW).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


def mend_masks(logits_NHW: Tensor, max_hole_area: int = 0, max_sprinkle_area: int = 0, filled: float = 10.0) -> Tensor:
    """Logits whose small holes are set to `filled` and whose small specks are set to -`filled`; areas in pixels of the logits.

    Holes are regions outside of the mask, specks ("sprinkles") regions of it; 0 leaves either alone.
    """
    if not max_hole_area and not max_sprinkle_area:
        return logits_NHW
    inside = (logits_NHW > 0).cpu().numpy()
    mended = logits_NHW.clone()
    for which, most_area, value in ((~inside, max_hole_area, filled), (inside, max_sprinkle_area, -filled)):
        if most_area and len(inside):
            small = np.stack([small_regions(mask, most_area) for mask in which])
            mended[torch.from_numpy(small).to(mended.device)] = value
    return mended
