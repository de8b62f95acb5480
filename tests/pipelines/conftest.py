"""A tiny embedding model and a small corpus of real media, shared by the pipeline tests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import package_dir


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory) -> Path:
    """Converted models of the tests, apart from the user's; workers inherit the variable."""
    folder = tmp_path_factory.mktemp("vfm-cache")
    before = os.environ.get("VFM_CACHE")
    os.environ["VFM_CACHE"] = str(folder)
    yield folder
    os.environ.pop("VFM_CACHE") if before is None else os.environ.update(VFM_CACHE=before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Spec of a randomly initialised ResNet of 32-pixel inputs, in timm's directory format."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "resnet10t", "num_classes": 0, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return f"timm:{folder}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, photographs, bikes) -> Path:
    """Fifteen real photographs and three real clips."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in photographs[:15]:
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(bikes, folder / "bikes.mp4")
    videos = package_dir("gradio") / "media_assets" / "videos"
    for name in ("a.mp4", "b.mp4"):
        shutil.copyfile(videos / name, folder / name)
    return folder


@pytest.fixture
def without_ray(monkeypatch) -> None:
    """For one test of a module whose others ask for Ray."""
    monkeypatch.setattr("pipelines.process.graph.has_ray", lambda: False)
