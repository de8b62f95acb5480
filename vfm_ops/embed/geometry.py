"""A checkpoint's own preprocessing, read from its files: the view (resize, crop, filter) and the pixels' mean and std."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vfm_ops.embed.checkpoint import Checkpoint
from vfm_ops.errors import UsageError
from vfm_ops.media.view import View

Preprocess = Literal["fast", "exact"]
Filter = Literal["bilinear", "bicubic", "lanczos"]
Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_PIL_NAME: dict[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
# What a checkpoint without a preprocessor file was trained with, by model_type.
_DEFAULT_COLOURS = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": (HALF, HALF), "siglip2": (HALF, HALF), "vit": (HALF, HALF)}

_DEFAULT_RESAMPLE = {"siglip2": 2, "vit": 2, "vit_mae": 2}  # Pillow's numbers; the others' processors say bicubic


@dataclass(frozen=True)
class Geometry:
    """view: geometry and filter; mean, std: per RGB channel, for pixels in [0, 1]."""

    view: View
    mean: Triple
    std: Triple


def geometry_of(checkpoint: Checkpoint, preprocess: Preprocess) -> Geometry:
    """How a checkpoint wants its pixels.

    preprocess: `exact` resizes with the model's own (Pillow) filter; `fast` with OpenCV's area filter, about five times
    as fast, the same crop and size.
    """
    if preprocess not in ("fast", "exact"):
        raise UsageError(f"unknown preprocess {preprocess!r}: use fast or exact")
    if checkpoint.kind == "transformers":
        return _of_transformers(checkpoint, preprocess)
    if checkpoint.kind == "openclip":
        return _of_openclip(checkpoint, preprocess)
    return _of_timm(checkpoint, preprocess)


def _filter(own: Filter, preprocess: Preprocess) -> Literal["area", "bilinear", "bicubic", "lanczos"]:
    return own if preprocess == "exact" else "area"


def _named_filter(name: object) -> Filter:
    return cast(Filter, name) if name in ("bilinear", "bicubic", "lanczos") else "bicubic"


def _triple(values: Any, default: Triple) -> Triple:
    if isinstance(values, list | tuple) and len(values) == 3:
        return (float(values[0]), float(values[1]), float(values[2]))
    return default


def _of_timm(checkpoint: Checkpoint, preprocess: Preprocess) -> Geometry:
    settings = checkpoint.config.get("pretrained_cfg") or {}
    _, height, width = settings.get("input_size", (3, 224, 224))
    view = View(
        int(height),
        int(width),
        "squash" if settings.get("crop_mode") == "squash" else "crop",
        float(settings.get("crop_pct") or 1.0),
        _filter(_named_filter(settings.get("interpolation")), preprocess),
    )
    return Geometry(view, _triple(settings.get("mean"), IMAGENET_MEAN), _triple(settings.get("std"), IMAGENET_STD))


def _of_openclip(checkpoint: Checkpoint, preprocess: Preprocess) -> Geometry:
    settings = checkpoint.config.get("preprocess_cfg") or {}
    vision = checkpoint.config.get("model_cfg", {}).get("vision_cfg", {})
    size = settings.get("size") or vision.get("image_size") or 224
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    own = _named_filter(settings.get("interpolation"))
    fit: Literal["crop", "squash"] = "squash" if settings.get("resize_mode") == "squash" else "crop"
    view = View(int(height), int(width), fit, 1.0, _filter(own, preprocess))
    return Geometry(view, _triple(settings.get("mean"), CLIP_MEAN), _triple(settings.get("std"), CLIP_STD))


def _of_transformers(checkpoint: Checkpoint, preprocess: Preprocess) -> Geometry:
    config, settings = checkpoint.config, processor_settings(checkpoint.folder)
    kind = str(config["model_type"])
    mean, std = _DEFAULT_COLOURS.get(kind, (IMAGENET_MEAN, IMAGENET_STD))
    mean, std = _triple(settings.get("image_mean"), mean), _triple(settings.get("image_std"), std)
    vision = config.get("vision_config", config)
    own = _PIL_NAME.get(settings.get("resample", _DEFAULT_RESAMPLE.get(kind, 3)), "bicubic")
    interpolation = _filter(own, preprocess)
    if kind == "siglip2":
        patch = int(settings.get("patch_size") or vision.get("patch_size") or 16)
        limit = int(settings.get("max_num_patches") or vision.get("num_patches") or 256)
        return Geometry(View(0, 0, "naflex", 1.0, interpolation, patch=patch, max_patches=limit), mean, std)
    default = vision.get("image_size") or 224
    crop = _height_width(settings.get("crop_size"), None)
    resize = settings.get("size")
    shortest = resize.get("shortest_edge") if isinstance(resize, dict) else None
    if settings.get("do_center_crop") and crop:
        edge = shortest or max(_height_width(resize, default) or crop)
        return Geometry(View(*crop, "crop", max(crop) / edge, interpolation), mean, std)
    if shortest:  # ConvNeXt's and ResNet's rule: below 384 px resize to size / crop_pct and take the centre
        pct = float(settings.get("crop_pct") or 224 / 256) if shortest < 384 else 1.0
        fit: Literal["crop", "squash"] = "crop" if shortest < 384 else "squash"
        return Geometry(View(shortest, shortest, fit, pct, interpolation), mean, std)
    height, width = _height_width(resize, default) or (224, 224)
    return Geometry(View(height, width, "squash", 1.0, interpolation), mean, std)


def processor_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings: preprocessor_config.json, or its part of processor_config.json; {} without either."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            try:
                value = json.loads((folder / name).read_text())
            except ValueError as error:
                raise UsageError(f"{folder / name} is not valid JSON ({error}): fetch it again") from error
            return value.get("image_processor", value)
    return {}


def _height_width(size: Any, default: Any) -> tuple[int, int] | None:
    size = default if size is None else size
    if isinstance(size, dict):
        return (int(size["height"]), int(size["width"])) if "height" in size else None
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    return (int(size), int(size)) if size else None
