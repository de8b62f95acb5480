"""Opt-in: our network beside the `ultralytics` package's, with the same weights. The package is no dependency."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn.functional import normalize

from tests.vfm_ops.detect.yolo_world.conftest import lively

LAYERS = {
    "backbone.image_model.stem": 0, "backbone.image_model.stage1.0": 1, "backbone.image_model.stage1.1": 2,
    "backbone.image_model.stage2.0": 3, "backbone.image_model.stage2.1": 4, "backbone.image_model.stage3.0": 5,
    "backbone.image_model.stage3.1": 6, "backbone.image_model.stage4.0": 7, "backbone.image_model.stage4.1": 8,
    "backbone.image_model.stage4.2": 9, "neck.top_down_layers.0": 12, "neck.top_down_layers.1": 15,
    "neck.downsample_layers.0": 16, "neck.bottom_up_layers.0": 18, "neck.downsample_layers.1": 19,
    "neck.bottom_up_layers.1": 21, "bbox_head.head_module": 22,
}  # fmt: skip
PARTS = {
    "main_conv": "cv1", "final_conv": "cv2", "conv1": "cv1", "conv2": "cv2", "blocks": "m", "attn_block": "attn",
    "guide_fc": "gl", "project_conv": "proj_conv", "reg_preds": "cv2", "cls_preds": "cv3", "cls_contrasts": "cv4",
}  # fmt: skip


def renamed(key: str) -> str:
    layer = next(name for name in LAYERS if key.startswith(f"{name}."))
    rest = key.removeprefix(f"{layer}.").split(".")
    return ".".join(["model", str(LAYERS[layer]), *(PARTS.get(part, part) for part in rest)])


@pytest.fixture
def world_model(monkeypatch, tmp_path):
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("needs the oracle: pip install ultralytics (AGPL-3.0, for this comparison only)")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "True")
    from ultralytics.nn.tasks import WorldModel

    return WorldModel


@pytest.mark.parametrize("size", ["s", "m", "l"])
@torch.inference_mode()
def test_the_network_equals_the_one_of_ultralytics(world_model, size):
    network = lively(size, 512)
    other = world_model(f"yolov8{size}-worldv2.yaml", nc=6, verbose=False).eval()
    expected = other.state_dict()
    own = {renamed(k): v.reshape(expected[renamed(k)].shape) for k, v in network.state_dict().items()}
    assert expected.keys() - own.keys() == {"model.22.dfl.conv.weight"}
    other.load_state_dict(own, strict=False)
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    generator = torch.Generator().manual_seed(1)
    images, text = torch.rand(1, 3, 96, 64, generator=generator), torch.randn(1, 6, 512, generator=generator)
    text = normalize(text, dim=-1)
    output = other.predict(images, txt_feats=text)
    rows = (output[0] if isinstance(output, tuple) else output)[0].T
    logits, boxes = network(images, text)
    torch.testing.assert_close(logits[0].sigmoid(), rows[:, 4:], atol=1e-4, rtol=0)
    centre, extent = rows[:, :2], rows[:, 2:4]
    torch.testing.assert_close(boxes[0], torch.cat([centre - extent / 2, centre + extent / 2], 1), atol=1e-3, rtol=1e-4)
