"""If these fail, docs/adding-a-model.md tells a newcomer to write a file that does not work."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vfm_ops.detect import load_detector
from vfm_ops.embed import load_embedder
from vfm_ops.errors import UsageError
from vfm_ops.models import registry

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-model.md"
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
SIZE = 32


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts a file of the page where its first line says, as far as the registry can tell; forgets its family afterwards."""
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_FAMILIES", {f.name: f for f in registry.families()})

    def write(path: str) -> None:
        name = Path(path).stem
        (tmp_path / f"{name}.py").write_text(FILES[path])
        spec = importlib.util.spec_from_file_location(f"added_{name}", tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses and pickles look there
        spec.loader.exec_module(module)

    return write


def test_the_page_has_a_file_of_each_kind():
    assert list(FILES) == ["vfm_ops/embed/families/swin.py", "vfm_ops/detect/families/yolos.py"]
    assert all(str(Path(f).parent).replace("/", ".") in registry.FOLDERS for f in FILES)


def test_the_embedding_family_of_the_page_gives_transformers_own_vectors(add, tmp_path):
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    config = SwinConfig(image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    model = SwinModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="unknown model family 'swin'"):
        load_embedder(f"swin:{tmp_path / 'model'}", device="cpu")
    add("vfm_ops/embed/families/swin.py")
    embedder = load_embedder(f"swin:{tmp_path / 'model'}", device="cpu", precision="exact", patch_tokens=True)
    views = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy(((views / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        own = model(pixel_values=pixels)
    expected = torch.nn.functional.normalize(own.pooler_output, dim=1).numpy()
    vectors, tokens = next(embedder.stream(iter([views])))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(tokens, own.last_hidden_state.numpy(), atol=5e-5)
    with pytest.raises(UsageError, match=f"use swin:{tmp_path / 'model'}"):
        load_embedder(f"resnet:{tmp_path / 'model'}", device="cpu")


def test_the_detector_of_the_page_finds_what_transformers_finds(add, tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = YolosConfig(
        **sizes, image_size=[SIZE, SIZE], patch_size=8, num_detection_tokens=5, id2label={0: "cat", 1: "dog"}
    )
    model = YolosForObjectDetection(config).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    YolosImageProcessor(size=side, do_pad=False).save_pretrained(folder)
    add("vfm_ops/detect/families/yolos.py")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = load_detector(f"yolos:{folder}", device="cpu", precision="exact").detect(
        [image], ["zebra", "dog"], thresholds=0.0, nms_iou=None, clip=False
    )[0]
    processor = YolosImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        own = model(**processor(image, return_tensors="pt", input_data_format="channels_last"))
    scores = own.logits[0].softmax(-1)[:, 1].numpy()
    cx, cy, w, h = own.pred_boxes[0].numpy().T * np.array([60, 40, 60, 40])[:, None]
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    order = np.argsort(-scores)
    assert set(found.labels) == {"dog"}
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes[order], atol=1e-3)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "yolos"
