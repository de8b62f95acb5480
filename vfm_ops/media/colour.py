"""Any Pillow image -> uint8 sRGB: embedded ICC profiles applied, alpha composited on white, deep samples scaled to 8 bits.

A profile that can't be read, or is of another colour space than its picture, is ignored: metadata never costs a picture.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

# Colours that tell whether a profile is sRGB under another name: a lattice of 6 x 6 x 6, inside of which nothing hides.
_LATTICE = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3, indexing="ij"), -1).astype(np.uint8).reshape(6, 36, 3)
# Decoders run for months: the transforms of a corpus of odd profiles must not pile up.
_TRANSFORMS = 32
_MAX_PROFILE_BYTES = 4 * 2**20
_PROFILED = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB"}
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def srgb_array(image: Any, icc: bytes | None = None) -> np.ndarray:
    """image: a loaded Pillow image of any mode. icc: its profile. Returns uint8 (H, W, 3)."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return cv2.cvtColor(_scaled_gray(image), cv2.COLOR_GRAY2RGB)
    if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    image = _to_srgb(image, icc)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def profiled_rgb(rgb: np.ndarray, icc: bytes | None, gray: bool = False) -> np.ndarray:
    """rgb: uint8 (H, W, 3) in the space of `icc`, a profile of greys where `gray`. Returns it in sRGB, the same array where
    that changes nothing.
    """
    mode = "L" if gray else "RGB"
    if not icc or _transform(icc, mode) is None:
        return rgb
    return np.asarray(_to_srgb(Image.fromarray(rgb[..., 0] if gray else rgb, mode), icc))


def _to_srgb(image: Any, icc: bytes | None) -> Any:
    transform = _transform(icc, image.mode) if icc and image.mode in _PROFILED else None
    return image if transform is None else ImageCms.applyTransform(image, transform)


@lru_cache(maxsize=_TRANSFORMS)
def _transform(icc: bytes, mode: str) -> Any:
    """From the profile to sRGB by its own intent; None where that changes nothing, or can't be done."""
    if len(icc) > _MAX_PROFILE_BYTES:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return None
        intent = ImageCms.Intent(profile.profile.rendering_intent)
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, _PROFILED[mode], intent)
        if mode not in ("RGB", "RGBA"):
            return transform
        lattice = Image.fromarray(_LATTICE).convert(mode)
        moved = np.asarray(ImageCms.applyTransform(lattice, transform))[..., :3]
    # LCMS answers nonsense with many types, OSError and ValueError among them.
    except Exception:
        return None
    return None if np.abs(moved.astype(int) - _LATTICE).max() <= 2 else transform


def _scaled_gray(image: Any) -> np.ndarray:
    """Deep grey to 8 bits; the one transparent grey that a PNG may name becomes white."""
    gray = np.asarray(image)
    scaled = scaled_to_8_bits(gray)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        scaled[gray == clear] = 255
    return scaled


def scaled_to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Integers to 8 bits by their type's range (65535 -> 255), signed ones like unsigned ones of 16 bits or by their maximum;
    floats in [0, 1] by 255, wider ones as if of 8 bits or by their maximum. What is negative or no number is black.
    """
    values = np.nan_to_num(samples.astype(np.float64))
    top = float(values.max(initial=0.0))
    if samples.dtype.kind == "f":
        full = 1.0 if top <= 1.0 else max(255.0, top)
    elif samples.dtype.kind == "u":
        full = float(np.iinfo(samples.dtype).max)
    else:
        full = max(65535.0, top)
    return np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)
