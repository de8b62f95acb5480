"""What a CPU worker makes of a sample: crops, masks, tokens; uint8 pixels, which the device normalises (a quarter of
the bytes).

Everything random follows from (seed, epoch, sample id) alone, so neither the number of workers nor their order changes a
pixel. numpy, OpenCV and Pillow only: a worker that augments never imports torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from vfm_ops.errors import MediaError, UsageError
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.rand_augment import erase, rand_augment

Interpolation = Literal["bicubic", "bilinear", "area"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class CropPlan:
    """`count` random resized crops of one size, and what is done to their colours.

    scale: share of the image's area; ratio: width / height. interpolation: bicubic and bilinear are Pillow's, as the
    authors' loaders have them, with antialiasing; area is OpenCV's, and linear where the crop grows. jitter: strengths of
    brightness, contrast, saturation, hue, applied with probability jitter_p. blur_p and solarize_p: one probability per
    crop of the plan (the last repeats), as DINO's two global crops differ in them. rand_augment: magnitude, 0 is off;
    erase_p: probability of a random rectangle of noise. scale None takes the whole image, squashed to size (evaluation).
    """

    name: str = "image"
    count: int = 1
    size: int = 224
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.8
    gray_p: float = 0.0
    blur_p: tuple[float, ...] = (0.0,)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: tuple[float, ...] = (0.0,)
    interpolation: Interpolation = "area"
    rand_augment: float = 0.0
    erase_p: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(
                f"crop scale {self.scale} must be two increasing numbers in (0, 1]: shares of the image's area"
            )


@dataclass(frozen=True)
class ViewPlan:
    """What an objective wants made of each sample. Keys of the batch: each crop's and mask's name, `label`, `tokens`."""

    crops: tuple[CropPlan, ...]
    masks: tuple[MaskPlan, ...] = ()
    label: bool = False
    tokens: int = 0  # length of the token sequence; 0: no caption is wanted


def sample_rng(seed: int, epoch: int, sample_id: str | int) -> np.random.Generator:
    """Generator for one sample in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{sample_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def make_views(
    plan: ViewPlan,
    sample: Mapping[str, Any],
    seed: int,
    epoch: int,
    tokenize: Callable[[str, int], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of fixed shape for one sample.

    sample: `id`, `image` uint8 (H, W, C), and, as the plan wants, `label` (int), `caption` (string, or a list to draw from).
    Returns {crop name: uint8 (count, size, size, C), mask name: bool (L,) or (views, L), label: int64, tokens: int64 (T,)}.
    Raises MediaError for an image that is no such array, UsageError when captions are wanted and there is no tokenizer.
    """
    rng = sample_rng(seed, epoch, sample["id"])
    image = sample["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise MediaError(
            "not_media", f"sample {sample['id']}: image must be uint8 (H, W, C), not {image.dtype} {image.shape}"
        )
    out: dict[str, np.ndarray] = {}
    for crop in plan.crops:
        out[crop.name] = np.stack([one_crop(image, crop, i, rng) for i in range(crop.count)])
    for mask in plan.masks:
        out[mask.name] = mask.draw(rng)
    if plan.label:
        out["label"] = np.asarray(sample["label"], np.int64)
    if plan.tokens:
        if tokenize is None:
            raise UsageError("captions are wanted but there is no tokenizer: name a tokenizer directory or train one")
        caption = sample["caption"]
        text = caption if isinstance(caption, str) else caption[int(rng.integers(len(caption)))]
        out["tokens"] = tokenize(text, plan.tokens)
    return out


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks samples along a new first dimension."""
    return {key: np.stack([s[key] for s in samples]) for key in samples[0]}


def one_crop(image_HWC: np.ndarray, plan: CropPlan, index: int, rng: np.random.Generator) -> np.ndarray:
    """The plan's `index`-th crop: uint8 (size, size, C)."""
    out = _resized_crop(image_HWC, plan, rng)
    if plan.flip_p and rng.random() < plan.flip_p:
        out = out[:, ::-1]
    if plan.rand_augment:
        out = rand_augment(np.ascontiguousarray(out), plan.rand_augment, rng)
    if any(plan.jitter) and rng.random() < plan.jitter_p:
        out = colour_jitter(out, plan.jitter, rng)
    if plan.gray_p and out.shape[2] == 3 and rng.random() < plan.gray_p:
        out = np.repeat(cv2.cvtColor(np.ascontiguousarray(out), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < _of(plan.blur_p, index):
        sigma = float(rng.uniform(*plan.blur_sigma))
        out = cv2.GaussianBlur(np.ascontiguousarray(out), (0, 0), sigma).reshape(out.shape)
    if rng.random() < _of(plan.solarize_p, index):
        out = np.where(out < 128, out, 255 - out)
    if plan.erase_p and rng.random() < plan.erase_p:
        out = erase(out, rng)
    return np.ascontiguousarray(out)


def _of(probabilities: tuple[float, ...], index: int) -> float:
    return probabilities[min(index, len(probabilities) - 1)]


def _resized_crop(image_HWC: np.ndarray, plan: CropPlan, rng: np.random.Generator) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if plan.scale is None:
        top, left, crop_h, crop_w = 0, 0, height, width
    else:
        top, left, crop_h, crop_w = crop_box(height, width, plan.scale, plan.ratio, rng)
    return resize(image_HWC[top : top + crop_h, left : left + crop_w], plan.size, plan.interpolation)


def resize(image_HWC: np.ndarray, side: int, interpolation: Interpolation = "area") -> np.ndarray:
    """uint8 (H, W, C) squashed to (side, side, C)."""
    height, width, channels = image_HWC.shape
    if interpolation == "area":
        method = cv2.INTER_AREA if height > side or width > side else cv2.INTER_LINEAR
        return cv2.resize(image_HWC, (side, side), interpolation=method).reshape(side, side, channels)
    # Of four channels Pillow would take the last for opacity: all but RGB goes channel by channel.
    planes = [image_HWC] if channels == 3 else [image_HWC[..., c] for c in range(channels)]
    # A gap of 3 reduces large crops by a whole factor first, which can't be told from the plain filter and saves most of it.
    made = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(p)).resize((side, side), _FILTERS[interpolation], reducing_gap=3.0)
        )
        for p in planes
    ]
    return made[0] if channels == 3 else np.stack(made, axis=-1)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop (Szegedy et al. 2015): area by `scale`, aspect log-uniform in
    `ratio`; after ten draws that do not fit, the largest centred box within `ratio`."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1)), crop_h, crop_w
    crop_w = min(width, max(1, round(height * ratio[1])))
    crop_h = min(height, max(1, round(width / ratio[0])))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def colour_jitter(
    image_HWC: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, each factor uniform in 1 +- strength (hue: shift in turns),
    as torchvision's ColorJitter has them. Saturation and hue need three channels and are else skipped."""
    for kind in rng.permutation(4):
        if not strength[kind]:
            continue
        if kind == 3:
            image_HWC = shift_hue(image_HWC, float(rng.uniform(-strength[3], strength[3])))
        else:
            factor = float(rng.uniform(max(0.0, 1 - strength[kind]), 1 + strength[kind]))
            image_HWC = (scale_brightness, scale_contrast, scale_saturation)[kind](image_HWC, factor)
    return image_HWC


def scale_brightness(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return cv2.convertScaleAbs(np.ascontiguousarray(image_HWC), alpha=factor).reshape(image_HWC.shape)


def scale_contrast(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean of the grey picture."""
    mean = int(_grey(image_HWC).mean() + 0.5)
    levels = np.arange(256, dtype=np.float32) * factor + mean * (1 - factor)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[image_HWC]


def scale_saturation(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey picture."""
    if image_HWC.shape[2] != 3:
        return image_HWC
    grey = cv2.cvtColor(_grey(image_HWC), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(np.ascontiguousarray(image_HWC), factor, grey, 1 - factor, 0)


def shift_hue(image_HWC: np.ndarray, turns: float) -> np.ndarray:
    """Adds to the hue; turns: of the colour circle."""
    if image_HWC.shape[2] != 3:
        return image_HWC
    hsv = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] = hsv[..., 0] + np.uint8(round(turns * 256) % 256)  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _grey(image_HWC: np.ndarray) -> np.ndarray:
    if image_HWC.shape[2] != 3:
        return image_HWC
    return cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)
