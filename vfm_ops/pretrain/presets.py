"""Small presets: each objective at a size that learns on two cores within minutes, from 28 x 28 grey images.

A preset stands beside its objective; here is what they share. Read them as a starting point: what differs from the authors'
recipe is what small data needs, and `REASONS` says why; docs/objectives.md lists every such key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings under those that a user gives: keys of the objective, and of the trainer.

    reasons: key: why it leaves the authors' recipe, for keys that `REASONS` does not have.
    """

    model: Mapping[str, Any]
    training: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)


PIXELS = {"image_size": 28, "mean": (0.286,) * 3, "std": (0.353,) * 3}
VIT = {"backbone": "vit_tiny_patch16_224"}
FINE = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3, "global_pool": "avg", "fc_norm": False}
COARSE = {"patch_size": 7, "embed_dim": 96, "depth": 4, "num_heads": 3}
# timm's stem divides by four: at 40 px the stages see 10, 5, 3 and 2 positions.
RESNET = {
    **PIXELS,
    "image_size": 40,
    "backbone": "resnet18",
    "backbone_args": {"channels": (32, 64, 128, 128), "layers": (1, 1, 1, 1), "stem_type": "deep", "stem_width": 16},
}
NO_BLUR = {"gray": 0.0, "blur": (0.0,), "solarize": (0.0,)}
MULTI_CROP = {
    **PIXELS, **VIT, **NO_BLUR, "prototypes": 1024, "head_hidden": 256, "bottleneck": 64, "momentum": 0.99,
    "local_crops": 2, "local_size": 14, "local_scale": (0.1, 0.4), "local_blur": 0.0, "freeze_last_layer_epochs": 0.1,
    "drop_path": 0.0,
}  # fmt: skip
PAIR = {
    **RESNET, "vocabulary": 512, "text_length": 16, "text_width": 64, "text_depth": 2, "text_heads": 2, "dim": 64,
    "crop_scale": (0.7, 1.0), "flip": 0.5,
}  # fmt: skip

TRAINING = {"base_lr": 2e-3, "lr_scaling": "none", "warmup_epochs": 0.2, "batch_size": 128}
ADAMW = {**TRAINING, "optimizer": "adamw"}
CONTRASTIVE = {**ADAMW, "weight_decay": 1e-4, "batch_size": 256}
TEACHER = {**TRAINING, "epochs": 0.8, "weight_decay_end": 0.1}
PAIRED = {**TRAINING, "epochs": 1, "weight_decay": 0.02}

_SIZES = "a network of minutes on two cores"
_PICTURES = "28 px grey pictures"
_SCHEDULE = "a run of minutes: hundreds of steps"
_BATCH = "small batches see few negatives"
# Why a preset leaves the authors' recipe, by key.
REASONS: dict[str, str] = {
    **dict.fromkeys(("image_size", "mean", "std", "local_size", "patch", "masked", "min_block"), _PICTURES),
    **dict.fromkeys(("gray", "blur", "local_blur", "solarize"), f"{_PICTURES}: nothing is left after it"),
    **dict.fromkeys(
        ("jitter", "crop_scale", "local_scale", "flip"), f"{_PICTURES}: milder views keep the thing in sight"
    ),
    **dict.fromkeys(
        ("backbone", "backbone_args", "decoder_dim", "decoder_depth", "decoder_heads", "head_hidden"), _SIZES
    ),
    **dict.fromkeys(("bottleneck", "projection_hidden", "projection_dim", "dim", "hidden", "local_crops"), _SIZES),
    **dict.fromkeys(
        ("tokenizer_dim", "tokenizer_hidden", "text_width", "text_depth", "text_heads", "text_length"), _SIZES
    ),
    **dict.fromkeys(("prototypes", "vocabulary", "classes", "queue"), "60,000 pictures of ten kinds"),
    **dict.fromkeys(("momentum", "freeze_last_layer_epochs", "teacher_temperature_epochs", "target"), _SCHEDULE),
    **dict.fromkeys(("drop_path", "layer_scale", "mixup", "cutmix"), f"{_SCHEDULE}: no time to overfit"),
    **dict.fromkeys(("temperature", "bias"), _BATCH),
    **dict.fromkeys(("base_lr", "lr_scaling", "warmup_epochs", "warmup_steps", "epochs", "batch_size"), _SCHEDULE),
    **dict.fromkeys(("weight_decay", "weight_decay_end", "layer_decay", "patch_embed_lr_scale"), _SCHEDULE),
    "optimizer": f"{_SCHEDULE}: AdamW finds its rate sooner than SGD or LARS",
    "smoothing": "some of the ten kinds look alike",
    "version": "a queue stands in for the batch of thousands that v3 needs",
}
