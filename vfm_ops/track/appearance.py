"""What an object looks like, as a unit vector: a colour histogram, for when no embedder is at hand."""

from __future__ import annotations

import numpy as np

BINS = 6


def colour_histogram(rgb: np.ndarray, box: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 (BINS^3,), unit length, of the pixels in a mask, or in a box where there is none.

    rgb: uint8 (H, W, 3). box: xyxy in pixels. mask: bool (H, W). Entries are square roots of frequencies, so that the dot
    product of two histograms is their Bhattacharyya coefficient. No pixel gives zeros, which resemble nothing.
    """
    height, width = rgb.shape[:2]
    x1, y1 = (int(max(0, np.floor(v))) for v in box[:2])
    x2, y2 = int(min(width, np.ceil(box[2]))), int(min(height, np.ceil(box[3])))
    pixels = rgb[y1:y2, x1:x2]
    pixels = pixels[mask[y1:y2, x1:x2]] if mask is not None else pixels.reshape(-1, 3)
    if len(pixels) == 0:
        return np.zeros(BINS**3, np.float32)
    cells = (pixels.astype(np.int64) * BINS) >> 8
    index = (cells[:, 0] * BINS + cells[:, 1]) * BINS + cells[:, 2]
    counts = np.bincount(index, minlength=BINS**3)
    return np.sqrt(counts / len(pixels)).astype(np.float32)
