"""RandAugment and random erasing as DeiT takes them from timm (rand-m9-mstd0.5-inc1; reprob 0.25, remode pixel).

Cubuk et al. 2020; Zhong et al. 2020. numpy and Pillow only. Operations grow with the magnitude, whose scale ends at 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS, PROBABILITY, SPREAD, LARGEST = 2, 0.5, 0.5, 10.0
_MEAN = (124, 116, 104)  # ImageNet's mean colour: what shows where a picture was moved away
_Make = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def rand_augment(image_HWC: np.ndarray, magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """Two operations drawn with replacement, each applied with probability 0.5 at a magnitude of N(magnitude, 0.5).

    uint8 (H, W, 3), or (H, W, 1), which is seen as grey. Other numbers of channels come back as they are.
    """
    channels = image_HWC.shape[2]
    if channels not in (1, 3):
        return image_HWC
    picture = Image.fromarray(image_HWC if channels == 3 else image_HWC[..., 0]).convert("RGB")
    for name in rng.choice(list(OPERATIONS), LAYERS):
        if rng.random() < PROBABILITY:
            level = float(np.clip(rng.normal(magnitude, SPREAD), 0, LARGEST)) / LARGEST
            picture = OPERATIONS[str(name)](picture, level, rng)
    return np.asarray(picture) if channels == 3 else np.asarray(picture.convert("L"))[..., None]


def _sign(rng: np.random.Generator) -> float:
    return -1.0 if rng.random() < 0.5 else 1.0


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Make:
    """Colour, contrast, brightness, sharpness: 1 is no change, both ways lead away from it."""
    return lambda p, level, rng: kind(p).enhance(max(0.1, 1 + _sign(rng) * 0.9 * level))


def _moved(picture: Image.Image, matrix: tuple[float, ...], rng: np.random.Generator) -> Image.Image:
    resample = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(rng.integers(2))]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_MEAN)


def _rotate(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    resample = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(rng.integers(2))]
    return picture.rotate(_sign(rng) * 30 * level, resample, fillcolor=_MEAN)


def _solarize_add(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    add = min(128, int(110 * level))
    return picture.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


# Names are timm's.
OPERATIONS: dict[str, _Make] = {
    "AutoContrast": lambda p, level, rng: ImageOps.autocontrast(p),
    "Equalize": lambda p, level, rng: ImageOps.equalize(p),
    "Invert": lambda p, level, rng: ImageOps.invert(p),
    "Rotate": _rotate,
    "PosterizeIncreasing": lambda p, level, rng: ImageOps.posterize(p, max(1, 4 - int(4 * level))),
    "SolarizeIncreasing": lambda p, level, rng: ImageOps.solarize(p, 256 - min(256, int(256 * level))),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda p, level, rng: _moved(p, (1, _sign(rng) * 0.3 * level, 0, 0, 1, 0), rng),
    "ShearY": lambda p, level, rng: _moved(p, (1, 0, 0, _sign(rng) * 0.3 * level, 1, 0), rng),
    "TranslateXRel": lambda p, level, rng: _moved(p, (1, 0, _sign(rng) * 0.45 * level * p.size[0], 0, 1, 0), rng),
    "TranslateYRel": lambda p, level, rng: _moved(p, (1, 0, 0, 0, 1, _sign(rng) * 0.45 * level * p.size[1]), rng),
}


def erase(image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of 2 % to a third of the area, aspect log-uniform in [0.3, 1 / 0.3], becomes noise, N(0, 1) a pixel.

    The authors draw it after normalising; here pixels are still bytes, so it is scaled by ImageNet's deviation and mean.
    """
    height, width, channels = image_HWC.shape
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
            noise = rng.normal(0.45 * 255, 0.225 * 255, (tall, wide, channels))
            out = image_HWC.copy()
            out[top : top + tall, left : left + wide] = np.clip(noise, 0, 255).astype(np.uint8)
            return out
    return image_HWC
