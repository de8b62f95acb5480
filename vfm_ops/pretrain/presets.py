"""Small presets: each objective at a size that learns on two cores within minutes, from 28 x 28 grey images.

Read them as a starting point: what differs from the paper's defaults is what small data needs (no blur, larger
temperature, fewer prototypes, a bias for small batches).
"""

from __future__ import annotations

from typing import Any

_PIXELS = {"image_size": 28, "mean": (0.286,) * 3, "std": (0.353,) * 3}
_VIT = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
_VIT_COARSE = {**_VIT, "patch_size": 7}
_VIT_MEAN = {**_VIT, "global_pool": "avg", "fc_norm": False}
_VIT_COARSE_MEAN = {**_VIT_COARSE, "global_pool": "avg", "fc_norm": False}
# timm's stem divides by four: at 56 px the stages see 14, 7, 4 and 2 positions.
_RESNET = {"channels": (32, 64, 128, 128), "layers": (1, 1, 1, 1)}

SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": (
        {**_PIXELS, "image_size": 56, "backbone": "resnet18", "backbone_args": _RESNET, "classes": 10, "mixup": 0.0,
         "cutmix": 0.0, "smoothing": 0.05, "crop_scale": (0.7, 1.0), "jitter": 0.0},
        {"base_lr": 2e-3, "lr_scaling": "none", "weight_decay": 0.02, "warmup_epochs": 0.3, "epochs": 3, "batch_size": 256},
    ),
    "simclr": (
        {**_PIXELS, "image_size": 56, "backbone": "resnet18", "backbone_args": _RESNET, "temperature": 0.2,
         "projection_hidden": 256, "projection_dim": 64, "crop_scale": (0.3, 1.0), "jitter": 0.5, "gray": 0.0, "blur": 0.0},
        {"optimizer": "adamw", "base_lr": 2e-3, "lr_scaling": "none", "weight_decay": 1e-4, "warmup_epochs": 0.3, "epochs": 5,
         "batch_size": 256},
    ),
    "moco": (
        {**_PIXELS, "image_size": 56, "backbone": "resnet18", "backbone_args": _RESNET, "version": "v2", "dim": 64,
         "hidden": 256, "queue": 4096, "temperature": 0.1, "momentum": 0.99, "crop_scale": (0.3, 1.0), "jitter": 0.4,
         "gray": 0.0, "blur": (0.0,), "solarize": (0.0,)},
        {"base_lr": 2e-3, "lr_scaling": "none", "weight_decay": 1e-4, "warmup_epochs": 0.3, "epochs": 4, "batch_size": 256},
    ),
    "mae": (
        {**_PIXELS, "backbone": "vit_tiny_patch16_224", "backbone_args": _VIT_MEAN, "patch": 4, "decoder_dim": 64,
         "decoder_depth": 1, "decoder_heads": 2, "crop_scale": (0.5, 1.0)},
        {"base_lr": 2e-3, "lr_scaling": "none", "warmup_epochs": 0.5, "epochs": 6, "batch_size": 256},
    ),
    "beit": (
        {**_PIXELS, "backbone": "vit_tiny_patch16_224", "backbone_args": _VIT_MEAN, "patch": 4, "masked": 24, "min_block": 4,
         "vocabulary": 256, "tokenizer_dim": 16, "tokenizer_hidden": 64, "crop_scale": (0.5, 1.0), "jitter": 0.0},
        {"base_lr": 2e-3, "warmup_epochs": 0.3, "epochs": 4, "batch_size": 256},
    ),
    "dino": (
        {**_PIXELS, "backbone": "vit_tiny_patch16_224", "backbone_args": _VIT_COARSE_MEAN, "prototypes": 1024,
        "head_hidden": 256,
         "bottleneck": 64, "momentum": 0.99, "local_crops": 2, "local_size": 14, "local_scale": (0.1, 0.4), "gray": 0.0,
         "blur": (0.0,), "local_blur": 0.0, "solarize": (0.0,), "freeze_last_layer_epochs": 0.2},
        {"base_lr": 2e-3, "lr_scaling": "none", "warmup_epochs": 0.3, "epochs": 3, "batch_size": 256, "weight_decay_end": 0.1},
    ),
    "dinov2": (
        {**_PIXELS, "backbone": "vit_tiny_patch16_224", "backbone_args": _VIT_COARSE, "patch": 7, "prototypes": 1024,
        "head_hidden": 256,
         "bottleneck": 64, "momentum": 0.99, "local_crops": 2, "local_size": 14, "local_scale": (0.1, 0.4), "gray": 0.0,
         "blur": (0.0,), "local_blur": 0.0, "solarize": (0.0,), "freeze_last_layer_epochs": 0.2,
         "teacher_temperature_epochs": 1,
         "target": "sinkhorn"},
        {"base_lr": 2e-3, "lr_scaling": "none", "warmup_epochs": 0.3, "epochs": 3, "batch_size": 256, "weight_decay_end": 0.1,
         "layer_decay": 1.0, "patch_embed_lr_scale": 1.0},
    ),
}  # fmt: skip

_TEXT = {
    "vocabulary": 512,
    "text_length": 16,
    "text_width": 64,
    "text_depth": 2,
    "text_heads": 2,
    "dim": 64,
    "crop_scale": (0.7, 1.0),
}
_PAIR = {**_PIXELS, **_TEXT, "image_size": 56, "backbone": "resnet18", "backbone_args": _RESNET, "flip": 0.5}
_PAIR_TRAINING = {
    "base_lr": 2e-3,
    "lr_scaling": "none",
    "weight_decay": 0.02,
    "warmup_epochs": 0.2,
    "epochs": 3,
    "batch_size": 128,
}
SMALL["clip"] = (_PAIR, _PAIR_TRAINING)
SMALL["siglip"] = ({**_PAIR, "bias": None}, _PAIR_TRAINING)
