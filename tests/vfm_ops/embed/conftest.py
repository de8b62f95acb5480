"""Tiny random checkpoints in each library's own format, and a cache of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIZE = 32
MEAN, STD = [0.48, 0.45, 0.41], [0.27, 0.26, 0.28]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "projection_size": 32,
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test: what is remembered in one says nothing of another."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VFM_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    return folder


@pytest.fixture(scope="session")
def transformers_model() -> Callable[[str], Any]:
    """name -> a tiny transformers model with random weights, in eval mode."""
    import torch
    import transformers as t

    def make(name: str) -> Any:
        torch.manual_seed(0)
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        vit = VISION | {"patch_size": 8}
        build = {
            "clip": lambda: t.CLIPModel(
                t.CLIPConfig(text_config=TEXT | special | {"eos_token_id": 3}, vision_config=vit, projection_dim=24)
            ),
            "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=TEXT | special, vision_config=vit)),
            "siglip2": lambda: t.Siglip2Model(
                t.Siglip2Config(text_config=TEXT | special, vision_config=vit | {"num_patches": 16})
            ),
            "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**vit)),
            "dinov3_vit": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**vit, num_register_tokens=3)),
            "dinov3_convnext": lambda: t.DINOv3ConvNextModel(
                t.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
            ),
            "vit-mae": lambda: t.ViTMAEModel(t.ViTMAEConfig(**vit)),
            "beit": lambda: t.BeitModel(t.BeitConfig(**vit)),
            "vit": lambda: t.ViTModel(t.ViTConfig(**vit)),
            "resnet": lambda: t.ResNetModel(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ),
        }
        model = build[name]().eval()
        with torch.no_grad():
            for name_, parameter in model.named_parameters():  # zero biases and unit norms would hide what is left out
                if parameter.ndim == 1 and "logit" not in name_:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a transformers model with its preprocessor settings; returns the folder."""

    def write(model: Any, **settings: Any) -> Path:
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        size = {"size": {"height": SIZE, "width": SIZE}, "image_mean": MEAN, "image_std": STD, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(size | settings))
        return folder

    return write


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8 frames (5, 32, 32, 3): not a multiple of any static batch."""
    return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def normalised_pixels(frames: np.ndarray, mean: list[float], std: list[float]) -> Any:
    """The textbook preparation in float64: (x / 255 - mean) / std, channels first, as a float32 tensor."""
    import torch

    x = (frames.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))


def unit(x: Any) -> np.ndarray:
    """Rows at unit length, float64."""
    x = np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
