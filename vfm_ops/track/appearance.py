"""What an object looks like, as a unit vector: by any embedder of crops, or a colour histogram where none is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BINS = 6
# N crops, uint8 RGB (H, W, 3), each of its own size -> L2-normalised vectors, float (N, D).
EmbedCrops = Callable[[Sequence[np.ndarray]], np.ndarray]


def crop_looks(embed: EmbedCrops, rgb: np.ndarray, boxes: np.ndarray) -> list[np.ndarray | None]:
    """What an embedder makes of the pixels in each box; None for a box that lies outside the picture, or is empty.

    rgb: uint8 (H, W, 3). boxes: xyxy in pixels, (N, 4).
    """
    height, width = rgb.shape[:2]
    low = np.clip(np.floor(boxes[:, :2]), 0, None).astype(int)
    high = np.minimum(np.ceil(boxes[:, 2:]), (width, height)).astype(int)
    shown = [i for i in range(len(boxes)) if (high[i] > low[i]).all()]
    looks: list[np.ndarray | None] = [None] * len(boxes)
    if shown:
        for i, vector in zip(shown, embed([rgb[low[i][1] : high[i][1], low[i][0] : high[i][0]] for i in shown])):
            looks[i] = vector
    return looks


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
