"""Layers of overlapping crops, for things that are small (Kirillov et al. 2023, "Segment Anything", appendix B)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NEAR_PX = 20  # a mask that ends so near to where a crop was cut may be part of a thing


@dataclass(frozen=True)
class Crop:
    """layer: 0 for the whole picture. box: (left, top, right, bottom) in pixels of the picture, right and bottom outside."""

    layer: int
    box: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        left, top, right, bottom = self.box
        return bottom - top, right - left

    def of(self, image: np.ndarray) -> np.ndarray:
        """The crop's pixels, a view."""
        left, top, right, bottom = self.box
        return image[top:bottom, left:right]

    def cuts(self, box: tuple[int, int, int, int], picture: tuple[int, int]) -> bool:
        """Whether a mask ends where the crop was cut, rather than at an edge of the picture, within 20 pixels.

        box: (left, top, right, bottom) of its first and last pixels, in the crop. picture: (height, width).
        """
        left, top, _, _ = self.box
        placed = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
        edges = (0, 0, picture[1], picture[0])
        return any(
            abs(end - cut) <= NEAR_PX < abs(end - edge) for end, cut, edge in zip(placed, self.box, edges, strict=True)
        )


def crop_layers(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole picture of `size` (height, width), then the crops of each layer: 2 x 2, 4 x 4, ..., column by column.

    Those of the first overlap by `overlap_ratio` of the shorter side, those of each next by half as much.
    """
    height, width = size
    crops = [Crop(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * 2 / count)
        lefts, tops = (_spans(side, count, overlap) for side in (width, height))
        crops += [Crop(layer, (x0, y0, x1, y1)) for x0, x1 in lefts for y0, y1 in tops]
    return crops


def _spans(side: int, count: int, overlap: int) -> list[tuple[int, int]]:
    length = math.ceil((overlap * (count - 1) + side) / count)
    starts = [(length - overlap) * i for i in range(count)]
    # Rounding up may leave nothing for the last crops of a tiny picture.
    return [(start, min(start + length, side)) for start in starts if start < side]
