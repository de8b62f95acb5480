"""Many pictures on one page, each with a caption: for search results, selections and tracks at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.overlay import FONT, plain

PAPER = (250, 250, 250)
INK = (35, 35, 35)
SCALE = 0.45
LINE = 18
GAP = 8
MAX_PICTURES = 400


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    cell: tuple[int, int] = (240, 180),
) -> np.ndarray:
    """One RGB page, uint8 (H, W, 3): pictures row by row, fitted into cells without distortion, captions below them.

    images: RGB uint8 (H, W, 3), or grey (H, W), of any sizes. captions: one a picture, wrapped to two lines and then cut
    with an ellipsis; a newline starts the second line. columns: by default as many as make the page about 4 : 3. cell:
    (width, height) of a picture in pixels. Raises UsageError for no pictures, more than 400, or too few captions.
    """
    if not images:
        raise UsageError("there is no picture for the contact sheet")
    if len(images) > MAX_PICTURES:
        raise UsageError(f"{len(images)} pictures are too many for one sheet: give at most {MAX_PICTURES}")
    if captions is not None and len(captions) != len(images):
        raise UsageError(f"{len(images)} pictures have {len(captions)} captions")
    width, height = cell
    lines = [[] if captions is None else wrap(plain(c), width) for c in captions or [""] * len(images)]
    text_height = max(map(len, lines)) * LINE + (4 if any(lines) else 0)
    columns = columns or default_columns(len(images), width + GAP, height + text_height + GAP)
    rows = -(-len(images) // columns)
    page = np.full((GAP + rows * (height + text_height + GAP), GAP + columns * (width + GAP), 3), PAPER, np.uint8)
    for i, image in enumerate(images):
        x = GAP + (i % columns) * (width + GAP)
        y = GAP + (i // columns) * (height + text_height + GAP)
        _paste(page[y : y + height, x : x + width], image, i)
        for k, line in enumerate(lines[i]):
            cv2.putText(page, line, (x, y + height + 14 + k * LINE), FONT, SCALE, INK, 1, cv2.LINE_AA)
    return page


def default_columns(count: int, width: int, height: int) -> int:
    """Columns of cells that make `count` of them a page of about 4 : 3."""
    return min(count, max(1, round((count * height * 4 / (width * 3)) ** 0.5)))


def wrap(text: str, width: int) -> list[str]:
    """At most two lines that fit `width` pixels, broken between words where there are any, with '...' where cut."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        rest = paragraph.strip()
        while rest:
            line = _fitting(rest, width)
            lines.append(line)
            rest = rest[len(line) :].strip()
    if len(lines) <= 2:
        return lines
    last = lines[1]
    while last and _text_width(last + "...") > width:
        last = last[:-1]
    return [lines[0], last + "..."]


def _fitting(text: str, width: int) -> str:
    length = len(text)
    while length > 1 and _text_width(text[:length]) > width:
        length -= 1
    if length < len(text) and " " in text[:length]:
        length = text[:length].rindex(" ")
    return text[:length].rstrip()


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, FONT, SCALE, 1)[0][0])


def _paste(cell: np.ndarray, image: np.ndarray, index: int) -> None:
    """Fit a picture into the middle of a cell; a small one is not blown up beyond twice its size."""
    picture = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise UsageError(f"images[{index}] has shape {image.shape} and dtype {image.dtype}: give uint8 RGB or grey")
    height, width = picture.shape[:2]
    scale = min(cell.shape[1] / width, cell.shape[0] / height, 2.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x, y = (cell.shape[1] - size[0]) // 2, (cell.shape[0] - size[1]) // 2
    cell[y : y + size[1], x : x + size[0]] = small
