"""Masks, boxes, ids and labels drawn over frames, with one colour a track from the first frame to the last."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.masks import as_mask

FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN_RATIO = 0.61803398875


def track_colour(identifier: object) -> tuple[int, int, int]:
    """RGB of an id: the same in every process and on every frame, bright enough for dark frames and for white ones.

    Whole numbers step around the colour wheel by the golden ratio, so that neighbouring ids differ most; other ids are
    hashed onto it.
    """
    text = str(identifier)
    if text.isdecimal():
        hue = (int(text) * GOLDEN_RATIO) % 1.0
    else:
        hue = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_objects(frame: np.ndarray, objects: Sequence[Mapping[str, Any]], *, opacity: float = 0.45) -> np.ndarray:
    """A copy of an RGB frame, uint8 (H, W, 3), with its objects drawn on it.

    An object may have `box` (xyxy in pixels), `mask` (COCO RLE or array of the frame's size), `track_id`, `label` and
    `score`; what is missing is not drawn, `visible: False` hides it all. The colour is that of the track_id, else of the
    label. Masks come first, then boxes, then text, so that nothing covers a caption. Raises UsageError for a mask of
    another size than the frame, or a box that is not finite.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UsageError(f"a frame has shape {frame.shape} and dtype {frame.dtype}: give RGB, uint8 (H, W, 3)")
    picture = np.ascontiguousarray(frame).copy()
    shown = [o for o in objects if o.get("visible") is not False]
    for item in shown:
        if item.get("mask") is not None:
            _blend_mask(picture, as_mask(item["mask"]), _colour(item), opacity)
    weight = line_width(picture.shape)
    for item in shown:
        if item.get("box") is not None:
            (x0, y0), (x1, y1) = _corners(item["box"])
            cv2.rectangle(picture, (x0, y0), (x1, y1), _colour(item), weight)
    for item in shown:
        text = caption(item)
        if text:
            draw_caption(picture, text, _anchor(item), _colour(item))
    return picture


def caption(item: Mapping[str, Any]) -> str:
    """What is written at an object: `#3 person 0.87`, of which anything may be missing."""
    parts = []
    if item.get("track_id") is not None:
        parts.append(f"#{_short(str(item['track_id']))}")
    if item.get("label") is not None:
        parts.append(str(item["label"]))
    if item.get("score") is not None:
        parts.append(f"{float(item['score']):.2f}")
    return plain(" ".join(parts))


def plain(text: str) -> str:
    """The drawing font knows printable ASCII; anything else is shown as '?'. Newlines stay."""
    return "".join(c if c == "\n" or 32 <= ord(c) < 127 else "?" for c in text)


def _short(identifier: str) -> str:
    """Ids of the lake are `asset:number`; the number tells tracks of one video apart."""
    tail = identifier.rsplit(":", 1)[-1]
    return tail if len(tail) <= 8 else tail[-8:]


def _colour(item: Mapping[str, Any]) -> tuple[int, int, int]:
    identifier = item.get("track_id")
    if identifier is None:
        return track_colour(item.get("label", ""))
    return track_colour(_short(str(identifier)))


def _corners(box: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    values = np.asarray(box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise UsageError(f"a box is {box}: give four finite numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = np.clip(np.round(values), -(2**15), 2**15).astype(int).tolist()
    return (x0, y0), (x1, y1)


def _anchor(item: Mapping[str, Any]) -> tuple[int, int]:
    """Upper left corner of an object: of its box, else of its mask."""
    if item.get("box") is not None:
        return _corners(item["box"])[0]
    if item.get("mask") is not None:
        rows, columns = np.nonzero(as_mask(item["mask"]))
        if len(rows):
            return int(columns.min()), int(rows.min())
    return 0, 0


def _blend_mask(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], opacity: float) -> None:
    if mask.shape != picture.shape[:2]:
        raise UsageError(f"a mask of {mask.shape} does not fit a frame of {picture.shape[:2]}")
    tinted = picture[mask] * (1 - opacity) + np.asarray(colour) * opacity
    picture[mask] = np.round(tinted).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, max(1, line_width(picture.shape) // 2), cv2.LINE_AA)


def line_width(shape: tuple[int, ...]) -> int:
    """Pixels of a line that is visible but hides little, by the frame's size."""
    return max(1, round(min(shape[:2]) / 300))


def draw_caption(picture: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Write on a filled plate just above `corner`, or below it where the frame ends; black or white, as contrasts more."""
    height, width = picture.shape[:2]
    scale = max(0.35, min(height, width) / 1100)
    thick = max(1, round(scale * 1.6))
    (text_width, text_height), base = cv2.getTextSize(text, FONT, scale, thick)
    pad = max(2, base // 2)
    plate_width, plate_height = text_width + 2 * pad, text_height + base + pad
    x = min(max(corner[0], 0), max(0, width - plate_width))
    y = corner[1] - plate_height if corner[1] - plate_height >= 0 else corner[1]
    y = min(max(y, 0), max(0, height - plate_height))
    cv2.rectangle(picture, (x, y), (x + plate_width, y + plate_height), colour, cv2.FILLED)
    red, green, blue = colour
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else (255, 255, 255)
    cv2.putText(picture, text, (x + pad, y + text_height + pad), FONT, scale, ink, thick, cv2.LINE_AA)
