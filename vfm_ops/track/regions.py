"""Small holes in masks, and small specks beside them: found by area, mended in the logits (8-connected regions)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

FILLED_LOGIT = 0.1  # of a hole in a video's mask, as in SAM 2: just inside, so that a correction can undo it


def small_regions(mask_HW: np.ndarray, most_area: int) -> np.ndarray:
    """bool (H, W): the 8-connected regions of a bool mask that have at most `most_area` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= most_area
    small[0] = False  # what is not in the mask
    return small[labels] if count > 1 else np.zeros(mask_HW.shape, bool)


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
