"""A view: how a frame becomes one model's input, as plain settings that a decoder process can apply without torch.

Pixels stay uint8 RGB (H, W, 3); the model's mean and std are folded into its graph, which saves a float copy per frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from vfm_ops.media.quality import QUALITY_SIDE, quality_gray

_PIL_FILTER = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class View:
    """Geometry of a model's input.

    height, width: of the result in pixels, the width as the height where it is not given (unused where each has its own).
    fit: `crop` resizes the shorter side to size / crop_pct and takes the centre; `squash` ignores the aspect ratio;
        `letterbox` keeps it and pads right and bottom with `pad`; `naflex` keeps it with at most `max_patches` patches
        of `patch` pixels (SigLIP 2's rule: the largest scale whose ceil-ed grid fits); `native` is the picture as it is;
        `luma` is one channel of luma with a longer side of 256 pixels (`vfm_ops.media.quality.quality_gray`).
    interpolation: `area` is OpenCV's (fast, box-filtered when shrinking); the others are Pillow's antialiased filters,
        which is what the models' own processors use.
    """

    height: int = 224
    width: int = 0
    fit: Literal["crop", "squash", "letterbox", "naflex", "native", "luma"] = "crop"
    crop_pct: float = 1.0
    interpolation: Literal["area", "bilinear", "bicubic", "lanczos"] = "area"
    pad: int = 0
    patch: int = 16
    max_patches: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", self.width or self.height)

    @property
    def ragged(self) -> bool:
        """Whether every picture has a size of its own."""
        return self.fit in ("naflex", "native", "luma")

    def shrinking(self, height: int, width: int) -> float:
        """By how much, at least, the view shrinks a picture of that size by averaging; 1 where that would be felt."""
        if self.fit == "luma":
            return max(height, width) / QUALITY_SIDE
        if self.ragged or self.interpolation != "area":
            return 1.0
        short, size = min(height, width), max(self.height, self.width)
        return short * self.crop_pct / size if self.fit == "crop" else short / size

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """rgb: uint8 (H, W, 3). Returns uint8 (height, width, 3); for `naflex` (h, w, 3) of whole patches,
        for `luma` (h, w, 1)."""
        if self.fit == "native":
            return rgb
        if self.fit == "luma":
            return quality_gray(rgb)[..., None]
        h, w = rgb.shape[:2]
        if self.fit == "crop":
            scale = max(self.height, self.width) / self.crop_pct / min(h, w)
            box_h, box_w = min(h, self.height / scale), min(w, self.width / scale)
            top, left = (h - box_h) / 2, (w - box_w) / 2
            return _resize(rgb, self.height, self.width, self.interpolation, (left, top, left + box_w, top + box_h))
        if self.fit == "letterbox":
            scale = min(self.height / h, self.width / w)
            new_h, new_w = max(1, round(h * scale)), max(1, round(w * scale))
            out = np.full((self.height, self.width, 3), self.pad, np.uint8)
            out[:new_h, :new_w] = _resize(rgb, new_h, new_w, self.interpolation)
            return out
        if self.fit == "naflex":
            return _resize(rgb, *naflex_size(h, w, self.patch, self.max_patches), self.interpolation)
        return _resize(rgb, self.height, self.width, self.interpolation)


def naflex_size(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
    """The largest size of at most max_patches whole patches with the image's aspect ratio (SigLIP 2, NaFlex).

    Binary search on the scale, as transformers' Siglip2ImageProcessor does, so that the grids agree.
    """

    def scaled(scale: float, size: int) -> int:
        return max(patch, int(math.ceil(size * scale / patch) * patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        if scaled(scale, height) * scaled(scale, width) / patch**2 <= max_patches:
            low = scale
        else:
            high = scale
    return scaled(low, height), scaled(low, width)


def _resize(
    rgb: np.ndarray, height: int, width: int, interpolation: str, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    if interpolation != "area":
        image = Image.fromarray(rgb).resize((width, height), _PIL_FILTER[interpolation], box)
        return np.asarray(image)
    if box is not None:
        left, top, right, bottom = box
        rows, columns = _whole_pixels(top, bottom, rgb.shape[0]), _whole_pixels(left, right, rgb.shape[1])
        rgb = rgb[rows, columns]
    shrinking = rgb.shape[0] >= height and rgb.shape[1] >= width
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)


def _whole_pixels(start: float, stop: float, count: int) -> slice:
    """The rows or columns nearest to [start, stop): at least one, since a picture one pixel thin is cut to less."""
    first = min(round(start), count - 1)
    return slice(first, max(first + 1, round(stop)))
