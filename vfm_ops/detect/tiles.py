"""Sliced inference (Akyon et al., ICIP 2022, https://arxiv.org/abs/2202.06934): small things in large pictures.

A detector scales every picture to its own size, where a small thing of a large picture has no pixels left. So it sees
overlapping tiles as well, and what it finds in them is merged. A box that ends where its tile was cut may be part of a
thing: it counts only where nobody saw more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vfm_ops.detect.types import Detections
from vfm_ops.errors import UsageError

# Share of a part that another box of its label must cover for both to be one thing; SAHI's own.
PART_OVERLAP = 0.5
# A box that ends nearer than this share of a tile's side to a cut has been cut: how well detectors know a border.
AT_A_CUT = 0.02


@dataclass(frozen=True)
class Tiles:
    """size: side of a tile, in pixels. overlap: share of a side that neighbours have in common; it should hold the
    things that are looked for, whole. whole: look at the whole picture too, for what is larger than that.
    """

    size: int
    overlap: float = 0.25
    whole: bool = True

    def __post_init__(self) -> None:
        if self.size < 16:
            raise UsageError(f"a tile's size is {self.size}: it must be at least 16 pixels")
        if not 0 <= self.overlap < 1:
            raise UsageError(f"the overlap of tiles is {self.overlap}: it must be at least 0, and below 1")


def tile_windows(height: int, width: int, tiles: Tiles) -> np.ndarray:
    """xyxy int64 (N, 4) of the tiles of a picture: all of one size, spread evenly, the last ones at the far border. A
    side that is shorter than a tile is one tile.
    """
    x, y = (_starts(side, tiles) for side in (width, height))
    size_x, size_y = min(tiles.size, width), min(tiles.size, height)
    return np.array([[left, top, left + size_x, top + size_y] for top in y for left in x], np.int64)


def _starts(side: int, tiles: Tiles) -> list[int]:
    if side <= tiles.size:
        return [0]
    step = max(1.0, tiles.size * (1 - tiles.overlap))
    count = int(np.ceil((side - tiles.size) / step)) + 1
    return [round(v) for v in np.linspace(0, side - tiles.size, count)]


def detect_in_tiles(
    image: np.ndarray,
    tiles: Tiles,
    detect: Callable[[Sequence[np.ndarray]], list[Detections]],
    merge_iou: float,
    max_detections: int,
    batch_size: int,
) -> Detections:
    """What a detector finds in a picture and in its tiles, merged.

    image: uint8 (H, W, 3). detect: finds in some pictures. merge_iou: two whole boxes of one label that overlap more
    are one. Boxes are in pixels of the picture, best first, at most `max_detections`.
    """
    height, width = image.shape[:2]
    windows = tile_windows(height, width, tiles)
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    if tiles.whole and len(windows) > 1:
        batches.append(np.array([[0, 0, width, height]]))  # alone: families that pad would pad every tile to its size
    found: list[tuple[np.ndarray, ...]] = []
    prompts: tuple[str, ...] = ()
    for batch in batches:
        seen = detect([np.ascontiguousarray(image[y0:y1, x0:x1]) for x0, y0, x1, y1 in batch])
        found += [_in_picture(s, window, width, height) for s, window in zip(seen, batch)]
        prompts = seen[0].prompts
    boxes, scores, prompt, cut = (np.concatenate(column) for column in zip(*found))
    kept = merge_boxes(boxes, scores, prompt, cut, merge_iou)[:max_detections]
    return Detections(boxes[kept].astype(np.float32), scores[kept], prompt[kept], prompts)


def _in_picture(found: Detections, window: np.ndarray, width: int, height: int) -> tuple[np.ndarray, ...]:
    """Boxes in pixels of the picture, scores, prompts, and whether a box ends where the tile was cut out of it."""
    boxes = found.boxes.astype(np.float64) + np.tile(window[:2], 2)
    near = AT_A_CUT * (window[2:] - window[:2])
    cuts_low, cuts_high = window[:2] > 0, window[2:] < (width, height)
    cut = (cuts_low & (boxes[:, :2] < window[:2] + near)) | (cuts_high & (boxes[:, 2:] > window[2:] - near))
    return boxes, found.scores, found.prompt_index, cut.any(1)


def merge_boxes(
    boxes: np.ndarray, scores: np.ndarray, prompt: np.ndarray, cut: np.ndarray, merge_iou: float
) -> np.ndarray:
    """Greedy suppression within each prompt: index of what stays, int64, best first.

    boxes: float (N, 4) xyxy. scores: (N,). prompt: int (N,). cut: bool (N,), what may be a part. Whole boxes come
    first, by score, and suppress each other by IoU; parts come last, the largest first, and go where a box that stays
    covers half of them.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    order = np.lexsort((-np.where(cut, area, scores), cut))
    kept: list[int] = []
    alive = np.ones(len(boxes), bool)
    for i in order:
        if not alive[i]:
            continue
        kept.append(int(i))
        others = np.flatnonzero(alive & (prompt == prompt[i]))
        low, high = np.maximum(boxes[i, :2], boxes[others, :2]), np.minimum(boxes[i, 2:], boxes[others, 2:])
        shared = (high - low).clip(0).prod(1)
        iou = shared / np.maximum(area[i] + area[others] - shared, 1e-9)
        covered = shared / np.maximum(area[others], 1e-9)
        alive[others[np.where(cut[others], covered > PART_OVERLAP, iou > merge_iou)]] = False
    return np.array(sorted(kept, key=lambda i: -scores[i]), np.int64)
