"""What a luma hash or an embedding cannot see of a picture: its colours, and the little that a plain picture holds.

A blank slide, a dark frame and a coloured disc give a hash, and a vector, that say "hardly anything here"; two such answers
agree whatever the pictures show. So a picture whose luma holds less than PLAIN_ENTROPY bits counts as *plain*, and a
duplicate of it is only believed when the stored pictures agree piece by piece. Of others the hash is believed, but for
colour, to which it is blind.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vfm_ops.media.quality import frame_quality, quality_gray

PLAIN_ENTROPY = 3.0
"""Bits of the luma histogram. Photographs and film have 5 to 8; text on paper, flat shapes and black frames below 2."""

_GRID, _DETAIL_SIDE, _CELL = 16, 1024, 16
_PLAIN_COLOUR = 16.0
_PLAIN_MEAN = 4.0


@dataclass(frozen=True)
class Look:
    """colours: float32 (16, 16, 3), means of the picture's 256 cells. detail: uint8 luma (h, w) of at most 1024 pixels a
    side; None where the picture is not to be compared closely."""

    colours: np.ndarray
    detail: np.ndarray | None


def is_plain(rgb: np.ndarray) -> bool:
    """Whether a picture, uint8 RGB (H, W, 3), holds too little for a hash or an embedding to tell it from others."""
    return frame_quality(quality_gray(rgb))["entropy"] < PLAIN_ENTROPY


def look_at(rgb: np.ndarray, close: bool) -> Look:
    """rgb: uint8 (H, W, 3). close: with its detail, as for a plain picture and what it is compared with."""
    colours = cv2.resize(rgb.astype(np.float32), (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    if not close:
        return Look(colours, None)
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, _DETAIL_SIDE / max(gray.shape))
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return Look(colours, gray if scale == 1.0 else cv2.resize(gray, size, interpolation=cv2.INTER_AREA))


def turned(look: Look) -> list[Look]:
    """The eight rotations and flips of a look, the look itself first."""
    detail = look.detail
    views = []
    for across in (look, Look(look.colours.swapaxes(0, 1), None if detail is None else detail.swapaxes(0, 1))):
        for flip in (slice(None), slice(None, None, -1)):
            for mirror in (slice(None), slice(None, None, -1)):
                shown = None if across.detail is None else across.detail[flip, mirror]
                views.append(Look(across.colours[flip, mirror], shown))
    return views


def same_look(a: Look, b: Look) -> bool:
    """Whether two pictures that a hash or an embedding calls alike may be one picture.

    With their details: the same colours and the same detail. Else the same colours, up to brightness and contrast.
    """
    if a.detail is None or b.detail is None:
        return same_colours(a.colours, b.colours)
    gap = a.colours - b.colours
    if np.abs(gap.mean(axis=(0, 1))).max() > _PLAIN_MEAN or np.abs(gap).max() > _PLAIN_COLOUR:
        return False
    return same_detail(a.detail, b.detail)


def same_colours(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the chroma of two pictures agrees cell by cell, up to one gain, as brightness and contrast change it.

    a, b: float32 RGB (..., 3), of the same shape. Weak colours are not compared: six levels are a re-encoding's.
    """
    x, y = _chroma(a), _chroma(b)
    gain = float((x * y).sum()) / max(float((y * y).sum()), 1e-6)
    gain = min(max(gain, 0.6), 1.0 / 0.6)
    residual = float(np.sqrt(((x - gain * y) ** 2).mean()))
    strength = float(np.sqrt(max((x * x).mean(), (gain * y * gain * y).mean())))
    return residual <= 0.35 * strength + 6.0


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """Red and blue less luma (Rec. 601), (..., 2)."""
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.stack([rgb[..., 0] - luma, rgb[..., 2] - luma], axis=-1)


def same_detail(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two plain pictures, uint8 luma, agree in every 16 x 16 cell, at the smaller one's size.

    A cell may differ by half of its own contrast, and by a tenth of the picture's most contrasted cell, which is what a
    strong compression leaves around text: so noise that is all a picture holds must agree as well.
    """
    if abs(np.log(a.shape[1] / a.shape[0] * b.shape[0] / b.shape[1])) > 0.03:
        return False
    large, small = (np.ascontiguousarray(x) for x in ((a, b) if a.size >= b.size else (b, a)))
    if large.shape != small.shape:
        large = cv2.resize(large, small.shape[::-1], interpolation=cv2.INTER_AREA)
    x, y = large.astype(np.float32), small.astype(np.float32)
    gap = x - y
    error = np.sqrt(_cell_means((gap - gap.mean()) ** 2))
    contrast = np.maximum(_cell_contrast(x), _cell_contrast(y))
    return bool((error <= 0.5 * contrast + 0.1 * contrast.max() + 0.05).all())


def _cell_means(image: np.ndarray) -> np.ndarray:
    height, width = (max(1, n // _CELL) for n in image.shape)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _cell_contrast(image: np.ndarray) -> np.ndarray:
    """Standard deviation within each cell."""
    return np.sqrt(np.maximum(_cell_means(image * image) - _cell_means(image) ** 2, 0.0))
