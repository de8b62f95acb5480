"""Masks as the tables hold them (COCO RLE), their boxes and overlaps. Numpy and pycocotools only."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco
from typing_extensions import TypedDict  # pydantic takes the standard library's from Python 3.12 on

from vfm_ops.errors import UsageError


class Rle(TypedDict):
    """COCO run lengths, compressed. size: [height, width]. counts: pycocotools' text."""

    size: list[int]
    counts: str


def encode_rle(mask_HW: np.ndarray) -> Rle:
    """bool (H, W) -> COCO RLE."""
    rle = coco.encode(np.asfortranarray(mask_HW, np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> np.ndarray:
    """COCO RLE -> bool (H, W)."""
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def checked_rle(rle: Rle, size: tuple[int, int] | None = None) -> np.ndarray:
    """COCO RLE of anyone -> bool (H, W); UsageError for what is none, or is of another size than the (height, width) wanted.

    pycocotools would write wherever bad runs lead it, and a small text may stand for any number of pixels.
    """
    runs = check_rle(rle, size)
    height, width = rle["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def check_rle(rle: Rle, size: tuple[int, int] | None = None) -> list[int]:
    """The run lengths of COCO RLE of anyone, column by column, the first of pixels off the mask. UsageError as `checked_rle`.

    Nothing is decoded: what it costs does not depend on the number of pixels.
    """
    if size is not None and tuple(rle["size"]) != size:
        raise UsageError(f"a mask has the size {list(rle['size'])}: give {size[0]} x {size[1]} (height x width)")
    (height, width), runs = rle["size"], _runs(rle["counts"])
    if height < 1 or width < 1 or any(n < 0 for n in runs) or sum(runs) != height * width:
        raise UsageError(
            f"a mask is no COCO RLE: its runs do not fill {height} x {width} pixels (size is [height, width])"
        )
    return runs


def _runs(counts: str) -> list[int]:
    """Run lengths of pycocotools' text: groups of six bits, five of them of a number; from the third on, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise UsageError("a mask is no COCO RLE: its counts are not what pycocotools writes")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (bits >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def rle_text(counts: str | bytes) -> str:
    """Counts as text, whichever way pycocotools gave them."""
    return counts.decode("ascii", "replace") if isinstance(counts, bytes) else str(counts)


def mask_box(mask_HW: np.ndarray) -> np.ndarray:
    """xyxy of the pixels set, float32 (4,), right and bottom edges outside; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if len(rows) == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def moved_rle(rle: Rle, x: int, y: int) -> Rle:
    """A mask moved by x columns to the right and y rows down; what leaves the frame is lost."""
    mask = decode_rle(rle)
    height, width = mask.shape
    out = np.zeros_like(mask)
    if abs(x) < width and abs(y) < height:
        part = mask[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
        out[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)] = part
    return encode_rle(out)


def rle_iou(a: list[Rle], b: list[Rle]) -> np.ndarray:
    """float64 (len(a), len(b)): intersection over union of masks, straight from the run lengths."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    left, right = ([{"size": r["size"], "counts": r["counts"].encode("ascii")} for r in rles] for rles in (a, b))
    return np.asarray(coco.iou(left, right, [0] * len(b))).reshape(len(a), len(b))


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (N, M): intersection over union of xyxy boxes (N, 4) and (M, 4); 0 for a box without area."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(0).prod(-1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
