"""Small presets: each objective at a size that learns on two cores within minutes, from 28 x 28 grey images.

Read them as a starting point: what differs from the paper's defaults is what small data needs (no blur, larger
temperature, fewer prototypes, a bias for small batches).
"""

from __future__ import annotations

from typing import Any

_PIXELS = {"image_size": 28, "mean": (0.286,) * 3, "std": (0.353,) * 3}
_VIT = {"backbone": "vit_tiny_patch16_224"}
_FINE = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3, "global_pool": "avg", "fc_norm": False}
_COARSE = {"patch_size": 7, "embed_dim": 96, "depth": 4, "num_heads": 3}
# timm's stem divides by four: at 40 px the stages see 10, 5, 3 and 2 positions.
_RESNET = {
    **_PIXELS,
    "image_size": 40,
    "backbone": "resnet18",
    "backbone_args": {"channels": (32, 64, 128, 128), "layers": (1, 1, 1, 1), "stem_type": "deep", "stem_width": 16},
}
_NO_BLUR = {"gray": 0.0, "blur": (0.0,), "solarize": (0.0,)}
_MULTI_CROP = {
    **_PIXELS, **_VIT, **_NO_BLUR, "prototypes": 1024, "head_hidden": 256, "bottleneck": 64, "momentum": 0.99,
    "local_crops": 2, "local_size": 14, "local_scale": (0.1, 0.4), "local_blur": 0.0, "freeze_last_layer_epochs": 0.1,
}  # fmt: skip
_PAIR = {
    **_RESNET, "vocabulary": 512, "text_length": 16, "text_width": 64, "text_depth": 2, "text_heads": 2, "dim": 64,
    "crop_scale": (0.7, 1.0), "flip": 0.5,
}  # fmt: skip

_TRAINING = {"base_lr": 2e-3, "lr_scaling": "none", "warmup_epochs": 0.2, "batch_size": 128}
_CONTRASTIVE = {**_TRAINING, "optimizer": "adamw", "weight_decay": 1e-4, "batch_size": 256}
_TEACHER = {**_TRAINING, "epochs": 0.8, "weight_decay_end": 0.1}
_PAIRED = {**_TRAINING, "epochs": 1, "weight_decay": 0.02}

SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": (
        {**_RESNET, "classes": 10, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.05, "crop_scale": (0.7, 1.0), "jitter": 0.0},
        {**_TRAINING, "weight_decay": 0.02, "epochs": 3},
    ),
    "simclr": (
        {**_RESNET, "temperature": 0.2, "projection_hidden": 256, "projection_dim": 64, "crop_scale": (0.3, 1.0),
         "jitter": 0.5, "gray": 0.0, "blur": 0.0},
        {**_CONTRASTIVE, "epochs": 1.5},
    ),
    "moco": (
        {**_RESNET, **_NO_BLUR, "version": "v2", "dim": 64, "hidden": 256, "queue": 4096, "temperature": 0.1,
         "momentum": 0.99, "crop_scale": (0.3, 1.0), "jitter": 0.4},
        {**_CONTRASTIVE, "epochs": 1.5},
    ),
    "mae": (
        {**_PIXELS, **_VIT, "backbone_args": _FINE, "patch": 4, "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2,
         "crop_scale": (0.5, 1.0)},
        {**_TRAINING, "epochs": 2},
    ),
    "beit": (
        {**_PIXELS, **_VIT, "backbone_args": _FINE, "patch": 4, "masked": 24, "min_block": 4, "vocabulary": 256,
         "tokenizer_dim": 16, "tokenizer_hidden": 64, "crop_scale": (0.5, 1.0), "jitter": 0.0},
        {**_TRAINING, "epochs": 1},
    ),
    "dino": ({**_MULTI_CROP, "backbone_args": {**_COARSE, "global_pool": "avg", "fc_norm": False}}, _TEACHER),
    "dinov2": (
        {**_MULTI_CROP, "backbone_args": _COARSE, "patch": 7, "teacher_temperature_epochs": 0.3, "target": "sinkhorn"},
        {**_TEACHER, "layer_decay": 1.0, "patch_embed_lr_scale": 1.0},
    ),
    "clip": (_PAIR, _PAIRED),
    "siglip": ({**_PAIR, "bias": None}, _PAIRED),
}  # fmt: skip
