"""YOLO-World behind the interface: published files in, boxes out, wrong files refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import optional_package
from tests.vfm_ops.detect import tiny
from tests.vfm_ops.detect.yolo_world.conftest import text_model
from vfm_ops.detect import load_detector
from vfm_ops.detect.yolo_world.detector import YoloWorld, canvas_shape, letterbox
from vfm_ops.detect.yolo_world.text import load_tokenizer
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.op_registry import load_op
from vfm_ops.track.masks import box_iou

PROMPTS = ["person", "red car", "dog"]


@pytest.fixture
def detector(checkpoint) -> YoloWorld:
    detector = load_detector(f"yolo-world:{checkpoint}", device="cpu", precision="exact")
    assert isinstance(detector, YoloWorld)
    detector.image_size = 96
    return detector


def test_a_published_file_loads_with_its_text_encoder(detector, network):
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in detector.network.state_dict().items())
    tokens = detector.text.tokenize(PROMPTS)
    with torch.inference_mode():
        embeds = text_model()(input_ids=tokens).text_embeds
    expected = embeds / embeds.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(detector.text(PROMPTS), expected, atol=1e-6, rtol=0)


def test_a_pth_with_a_state_dict_inside_is_the_same_detector(checkpoint, tmp_path, detector):
    torch.save(
        {"meta": {"epoch": 3}, "state_dict": load_file(next(checkpoint.glob("*.safetensors")))}, tmp_path / "a.pth"
    )
    tiny.clip_tokenizer(32).save_pretrained(tmp_path / "tokenizer")
    other = load_detector(f"yolo-world:{tmp_path / 'a.pth'}", device="cpu")
    other.image_size = 96
    images = tiny.frames([(40, 60)])
    for a, b in zip(detector.detect(images, PROMPTS), other.detect(images, PROMPTS)):
        np.testing.assert_array_equal(a.boxes, b.boxes)


def test_every_image_has_its_own_prompts_whatever_its_neighbours(detector):
    images = tiny.frames([(40, 60), (60, 40), (50, 60)])
    own = [["dog"], PROMPTS, ["red car", "person"]]
    together = detector.detect(images, own, thresholds=0.05)
    for image, prompts, found in zip(images, own, together):
        alone = detector.detect([image], prompts, thresholds=0.05)[0]
        assert len(found) > 0
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert found.labels == alone.labels


def test_boxes_come_back_to_the_pixels_of_the_image(detector, network):
    """Oracle: the network on a canvas built here, and p = (canvas - offset) / scale by hand."""
    image = tiny.frames([(30, 64)], seed=2)[0]
    found = detector.detect([image], ["dog"], thresholds=0.0, nms_iou=None, clip=False, max_detections=9999)[0]
    canvas = np.full((64, 96, 3), 114, np.uint8)
    import cv2

    canvas[9:54] = cv2.resize(image, (96, 45), interpolation=cv2.INTER_LINEAR)
    with torch.inference_mode():
        pixels = torch.from_numpy(canvas).permute(2, 0, 1)[None] / 255
        logits, boxes = network(pixels, detector.text(["dog"])[None])
    expected = (boxes[0].numpy() - [0, 9, 0, 9]) / [1.5, 1.5, 1.5, 1.5]
    order = np.argsort(-logits[0, :, 0].numpy(), kind="stable")
    np.testing.assert_allclose(found.boxes, expected[order], atol=2e-3)
    np.testing.assert_allclose(found.scores, logits[0, :, 0].sigmoid().numpy()[order], atol=1e-5)


def test_a_box_has_every_label_that_it_scores_for_as_in_the_official_head(checkpoint, detector, network):
    """Oracle: every prompt's scores on their own, its own suppression by hand, the best 300 of all."""
    image = tiny.frames([(64, 96)], seed=2)[0]
    options = {"thresholds": 0.001, "nms_iou": 0.7, "clip": False}
    several = load_detector(f"yolo-world:{checkpoint}", device="cpu", precision="exact", multi_label=True)
    several.image_size = 96
    found = several.detect([image], PROMPTS, **options)[0]
    with torch.inference_mode():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        logits, boxes = network(pixels, detector.text(PROMPTS)[None])
    scores, boxes = logits[0].sigmoid().numpy(), boxes[0].numpy()
    expected = []
    for prompt in range(len(PROMPTS)):
        left = [int(a) for a in np.argsort(-scores[:, prompt], kind="stable") if scores[a, prompt] > 0.001]
        while left:
            first, *rest = left
            expected.append((float(scores[first, prompt]), prompt, first))
            left = [a for a, iou in zip(rest, box_iou(boxes[[first]], boxes[rest])[0]) if iou <= 0.7]
    expected = sorted(expected, reverse=True)[:300]
    np.testing.assert_allclose(found.scores, [s for s, _, _ in expected], atol=1e-5)
    assert sorted(found.prompt_index) == sorted(p for _, p, _ in expected)
    one = detector.detect([image], PROMPTS, **options)[0]
    assert len({tuple(b.round(2)) for b in found.boxes}) < len(found)  # some box has two labels
    assert len({tuple(b.round(2)) for b in one.boxes}) == len(one)


def test_several_labels_are_the_best_one_where_there_is_one_prompt(checkpoint, detector):
    several = load_detector(f"yolo-world:{checkpoint}", device="cpu", precision="exact", multi_label=True)
    several.image_size = 96
    a, b = (d.detect(tiny.frames([(40, 60)]), "dog", thresholds=0.01)[0] for d in (detector, several))
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_a_family_with_one_label_a_box_refuses_several():
    with pytest.raises(UsageError, match="multi_label is of yolo-world: a box of owlvit has one label"):
        load_detector("owlvit:pocket", device="cpu", multi_label=True)
    with pytest.raises(UsageError, match="multi_label is of yolo-world"):
        load_op({"detect": {"prompts": "a", "multi_label": True}})


def test_a_vocabulary_set_ahead_of_time_finds_the_same_and_others_still_work(detector):
    images = tiny.frames([(40, 60), (60, 40)])
    online = detector.detect(images, PROMPTS, thresholds=0.05)
    other = detector.detect(images, ["cat"], thresholds=0.05)
    assert detector.set_vocabulary("person . red car . dog .") == tuple(PROMPTS)
    detector.network.forward = None  # the online network must not be asked
    folded = detector.detect(images, PROMPTS, thresholds=0.05)
    del detector.network.forward
    for a, b in zip(online, folded):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
        assert a.labels == b.labels
    np.testing.assert_array_equal(detector.detect(images, ["cat"], thresholds=0.05)[0].boxes, other[0].boxes)


def test_a_canvas_is_the_smallest_multiple_of_the_stride():
    assert canvas_shape(360, 640, 640) == (384, 640)
    assert canvas_shape(1920, 1080, 640) == (640, 384)
    assert canvas_shape(1, 4000, 640) == (32, 640)
    canvas, (offset, scale) = letterbox(np.zeros((360, 640, 3), np.uint8), (384, 640), 640)
    assert (offset, scale) == ((0.0, 12.0), (1.0, 1.0))
    assert (canvas[:12] == 114).all()
    assert (canvas[12:372] == 0).all()


def test_a_prompt_longer_than_the_text_window_is_refused_and_not_cut(detector):
    with pytest.raises(UsageError, match="tokens"):
        detector.detect(tiny.frames([(32, 32)]), ["red car " * 9])


def damaged(checkpoint, change):
    state = load_file(next(checkpoint.glob("*.safetensors")))
    change(state)
    return state


V1_HEAD = "bbox_head.head_module.cls_contrasts.0.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("neck.downsample_layers.0.conv.weight"), "lacks 1 weights"),
        (lambda s: s.update({"neck.spy.weight": torch.zeros(1)}), "unknown 1 weights"),
        (lambda s: s.update({"neck.top_down_layers.0.attn_block.bias": torch.zeros(5)}), "other shapes"),
        (lambda s: s.update({"neck.text_enhancer.query.0.weight": torch.zeros(1)}), "v1"),
        (lambda s: s.pop(V1_HEAD), "v1"),
        (lambda s: s.pop("backbone.image_model.stem.conv.weight"), "no YOLO-World-v2"),
        (lambda s: s.pop("backbone.text_model.model.text_projection.weight"), "no CLIP text model"),
        (
            lambda s: s.update({"backbone.image_model.stem.conv.weight": torch.zeros(40, 3, 3, 3)}),
            "known sizes are s, m, l",
        ),
    ],
)
def test_other_weights_are_refused_with_what_they_are(checkpoint, tmp_path, change, message):
    save_file(damaged(checkpoint, change), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=message):
        load_detector(f"yolo-world:{tmp_path / 'w.safetensors'}")


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"state_dict": {}, "extra": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="never unpickled"):
        load_detector(f"yolo-world:{tmp_path / 'evil.pth'}")
    assert "unpickled" not in capsys.readouterr().out


def test_a_file_that_is_no_weights_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UsageError, match="can't be read"):
        load_detector(f"yolo-world:{tmp_path}")
    with pytest.raises(WeightsUnavailable, match="hf download"):
        load_detector(f"yolo-world:{tmp_path / 'none.pth'}")
    (tmp_path / "second.pth").write_bytes(b"")
    with pytest.raises(UsageError, match="2 weights files"):
        load_detector(f"yolo-world:{tmp_path}")


@pytest.fixture
def open_clip():
    return optional_package("open_clip")


def test_without_a_tokenizer_beside_the_weights_open_clip_gives_clips_token_ids(open_clip, tmp_path, monkeypatch):
    """'a photo of a cat' in CLIP's published vocabulary, between its start and end tokens."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    tokenize = load_tokenizer(tmp_path, 77)
    assert tokenize(["a photo of a cat"])[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    with pytest.raises(UsageError, match="tokens"):
        tokenize(["red car " * 60])
