"""Objectives at toy sizes, for tests of mechanics: 16 px images, a two-block ViT."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from vfm_ops.pretrain.data import Samples
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.registry import build_objective
from vfm_ops.pretrain.text import Tokenize, tokenize_with, train_tokenizer
from vfm_ops.pretrain.train_config import TrainConfig, train_config

VIT = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
# No stochastic depth: micro-batches and worlds of other sizes would draw other blocks to drop.
_IMAGE = {"image_size": 16, "backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "drop_path": 0.0}
_DINO = {
    **_IMAGE, "prototypes": 32, "head_hidden": 16, "bottleneck": 8, "local_crops": 2, "local_size": 8, "momentum": 0.9,
}  # fmt: skip
_TEXT = {**_IMAGE, "vocabulary": 64, "text_length": 8, "text_width": 16, "text_depth": 1, "text_heads": 2, "dim": 24}
TINY: dict[str, dict[str, Any]] = {
    "supervised": {**_IMAGE, "classes": 3},
    "simclr": {**_IMAGE, "projection_hidden": 16, "projection_dim": 8},
    "moco": {**_IMAGE, "version": "v2", "dim": 8, "hidden": 16, "queue": 32, "temperature": 0.2},
    "mae": {**_IMAGE, "patch": 4, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "beit": {
        **_IMAGE,
        "patch": 4,
        "masked": 6,
        "min_block": 2,
        "vocabulary": 16,
        "tokenizer_dim": 4,
        "tokenizer_hidden": 8,
    },
    "dino": _DINO,
    "dinov2": {**_DINO, "patch": 4, "target": "sinkhorn", "separate_ibot_head": True},
    "clip": _TEXT,
    "siglip": {**_TEXT, "bias": None},
}


def build(name: str, **settings: Any) -> Objective:
    """A toy objective, the same weights each time."""
    torch.manual_seed(0)
    return build_objective(name, **{**TINY[name], **settings})


def samples(count: int = 24) -> Samples:
    """Images of three kinds that a label and a caption tell apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 80, (count, 20, 18, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 150
    return Samples(images, labels.astype(np.int64), [f"a {('red', 'green', 'blue')[label]} square" for label in labels])


@lru_cache
def tokenizer() -> Tokenize:
    """Learnt from the toy captions."""
    return tokenize_with(train_tokenizer(samples().captions, 64))


def training(name: str, **settings: Any) -> TrainConfig:
    """Eight samples a step, six steps."""
    return train_config(
        name,
        **{
            "batch_size": 8,
            "epochs": 2,
            "warmup_epochs": 0.5,
            "base_lr": 1e-3,
            "lr_scaling": "none",
            "monitor_every": 2,
            **settings,
        },
    )
