"""What the interface promises: prompts in every notation, thresholds by prompt, long vocabularies, clear refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.vfm_ops.detect import tiny
from vfm_ops.detect import load_detector
from vfm_ops.detect.base import pack_by_tokens
from vfm_ops.detect.families.grounding_dino import join_prompts
from vfm_ops.detect.postprocess import Candidates, select
from vfm_ops.detect.prompts import prompts_per_image, threshold_of_each
from vfm_ops.errors import UsageError, VfmError, WeightsUnavailable

FAMILIES = ["grounding-dino", "owlvit", "owlv2", "omdet-turbo"]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("person . bicycle .", [["person", "bicycle"]] * 2),
        ("person. red car", [["person", "red car"]] * 2),
        (["person", "bicycle"], [["person", "bicycle"]] * 2),
        (["st. bernard", "cat . dog ."], [["st. bernard", "cat", "dog"]] * 2),
        ([["cat"], ["dog", "dog", "person"]], [["cat"], ["dog", "person"]]),
        ([["cat"], "dog . person ."], [["cat"], ["dog", "person"]]),
    ],
)
def test_every_notation_of_prompts_becomes_one_list_an_image(prompts, expected):
    assert prompts_per_image(prompts, 2) == expected


@pytest.mark.parametrize("prompts", ["", " . ", [], [""], [["cat"], []], [["cat"], ["  "]], [["cat"]], [[3], ["a"]]])
def test_empty_or_missing_prompts_are_refused(prompts):
    with pytest.raises(UsageError):
        prompts_per_image(prompts, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_prompt_is_refused_by_every_detector(load, family):
    with pytest.raises(UsageError, match="empty"):
        load(family).detect(tiny.frames([(32, 32)]), " ")


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_resized_where_the_model_is(load, family, monkeypatch):
    detector = load(family)
    processor = type(detector.processor.image_processor)
    seen, call = [], processor.__call__

    def spy(self, *images, **settings):
        seen.append(settings.get("device"))
        return call(self, *images, **settings)

    monkeypatch.setattr(processor, "__call__", spy)
    detector.detect(tiny.frames([(48, 80)]), "cat")
    assert seen == [detector.device]


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_lie_in_the_image_and_have_one_prompt_each(load, family):
    images = tiny.frames([(48, 80), (70, 40)])
    for found, image in zip(load(family).detect(images, "cat . dog . person .", thresholds=0.1), images):
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.boxes.shape == (len(found), 4)
        assert found.prompt_index.shape == found.scores.shape == (len(found),)
        assert len(found) > 0
        assert set(found.labels) <= {"cat", "dog", "person"}
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_any_detection_gives_empty_arrays_of_the_right_shape(load, family):
    found = load(family).detect(tiny.frames([(32, 32)]), "cat", thresholds=1.0)[0]
    assert (found.boxes.shape, found.scores.shape, found.labels) == ((0, 4), (0,), [])


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_runs_and_stays_near_float32(checkpoints, family):
    images = tiny.frames([(48, 80)])
    scores = []
    for precision in ("exact", "bf16"):
        detector = load_detector(f"{family}:{checkpoints[family]}", device="cpu", precision=precision)
        scores.append(detector.detect(images, ["cat", "dog"], thresholds=0.0, nms_iou=None)[0].scores)
    assert len(scores[0]) == len(scores[1])
    assert np.corrcoef(*scores)[0, 1] > 0.9


def test_no_images_give_no_detections(load):
    assert load("owlvit").detect([], "cat") == []


def test_thresholds_hold_prompt_by_prompt(load):
    images = tiny.frames([(64, 64)])
    detector = load("owlvit")
    every = detector.detect(images, ["cat", "dog"], thresholds=0.0, nms_iou=None)[0]
    kept = detector.detect(images, ["cat", "dog"], thresholds={"cat": 0.8, "dog": 0.2}, nms_iou=None)[0]
    limit = np.where(every.prompt_index == 0, 0.8, 0.2)
    np.testing.assert_array_equal(kept.boxes, every.boxes[every.scores > limit])
    assert set(kept.labels) == {"cat", "dog"}


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), {"cat": float("inf")}, {"cta": 0.5}])
def test_a_wrong_threshold_is_named(load, bad):
    with pytest.raises(UsageError, match="threshold"):
        load("owlvit").detect(tiny.frames([(32, 32)]), "cat", thresholds=bad)


def test_a_prompt_that_a_mapping_lacks_keeps_the_familys_threshold():
    np.testing.assert_allclose(threshold_of_each(["a", "b"], {"a": 0.5}, 0.25), [0.5, 0.25])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), np.uint8), ((8, 8, 4), np.uint8), ((8, 8, 3), np.float32), ((0, 8, 3), np.uint8)]
)
def test_something_else_than_an_rgb_picture_is_refused(load, shape, dtype):
    with pytest.raises(UsageError, match=r"images\[0\]"):
        load("owlvit").detect([np.zeros(shape, dtype)], "cat")


@pytest.mark.parametrize("box", [[0, 0, 99, 10], [5, 5, 5, 9], [float("nan"), 0, 3, 3], [-1, 0, 3, 3], [1, 2, 3]])
def test_a_query_box_outside_the_picture_is_refused(load, box):
    images = tiny.frames([(32, 32)])
    with pytest.raises(UsageError, match="query_box"):
        load("owlv2").detect_like(images, images[0], box)


def test_500_objects_on_a_frame_are_limited_to_the_best():
    boxes = torch.arange(500.0)[:, None] + torch.tensor([0.0, 0.0, 0.5, 0.5])
    candidates = Candidates(boxes, torch.linspace(0.1, 0.9, 500), torch.zeros(500, dtype=torch.long))
    found = select(candidates, ["cat"], np.float32([0.0]), (600, 600), 0.7, 100, True)
    assert len(found) == 100
    assert found.scores.min() > 0.7


def test_a_model_that_gives_nan_fails_loudly():
    candidates = Candidates(torch.zeros(1, 4), torch.tensor([float("nan")]), torch.zeros(1, dtype=torch.long))
    with pytest.raises(VfmError, match="NaN"):
        select(candidates, ["cat"], np.float32([0.0]), (8, 8), None, 10, True)


def test_a_vocabulary_longer_than_the_text_window_goes_in_several_passes(tmp_path):
    """Oracle: the passes, asked for one at a time, and put together by hand."""
    detector = load_detector(f"grounding-dino:{tiny.grounding_dino(tmp_path, max_text_len=9)}", device="cpu")
    images = tiny.frames([(48, 64), (40, 40)])
    prompts = ["red car", "cat", "traffic light", "person", "dog", "bicycle"]
    assert detector._vocabulary_parts(prompts) == [[0, 1], [2, 3, 4], [5]]
    found = detector.detect(images, [prompts, ["cat"]], thresholds=0.0, nms_iou=None, clip=False)
    alone = detector.detect(images[:1], prompts[2:5], thresholds=0.0, nms_iou=None, clip=False)[0]
    rows = np.isin(found[0].prompt_index, [2, 3, 4])
    np.testing.assert_allclose(found[0].boxes[rows], alone.boxes, atol=1e-3)
    assert [prompts[i] for i in found[0].prompt_index[rows]] == alone.labels
    assert len(found[0]) == 3 * len(found[1])


def test_parts_never_exceed_the_window_and_keep_the_order():
    counts = [3, 2, 2, 5, 1, 1, 4]
    parts = pack_by_tokens(counts, 5)
    assert [i for p in parts for i in p] == list(range(7))
    assert all(sum(counts[i] for i in p) <= 5 for p in parts)


def test_an_omdet_vocabulary_never_overruns_the_task_sentence(load):
    detector = load("omdet-turbo")
    prompts = [f"{a} {b}" for a in tiny.WORDS[:6] for b in tiny.WORDS[6:10]]
    parts = detector._vocabulary_parts(prompts)
    assert len(parts) > 1
    for part in parts:
        sentence = f"Detect {', '.join(prompts[i] for i in part)}."
        assert len(detector.processor.tokenizer(sentence)["input_ids"]) <= 77


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_longer_than_the_window_is_refused_and_not_cut(load, family):
    with pytest.raises(UsageError, match="tokens"):
        load(family).detect(tiny.frames([(32, 32)]), ["cat " * 90])


def test_a_dot_inside_a_prompt_does_not_split_it():
    text, spans = join_prompts(["St. Bernard", "cat"])
    assert text == "st bernard. cat."
    assert [text[a:b] for a, b in spans] == ["st bernard", "cat"]


def test_a_checkpoint_of_another_architecture_is_named(checkpoints):
    with pytest.raises(UsageError, match=r"'owlv2'.*use owlv2:"):
        load_detector(f"owlvit:{checkpoints['owlv2']}")


@pytest.mark.parametrize("spec", ["rcnn:x", "owlvit", "owlvit:", ""])
def test_an_unknown_family_lists_the_known_ones(spec):
    with pytest.raises(UsageError) as caught:
        load_detector(spec)
    assert all(family in str(caught.value) for family in (*FAMILIES, "yolo-world"))


@pytest.mark.parametrize("name", ["/no/such/folder", "google/owlvit-base-patch32"])
def test_missing_weights_are_reported_at_once_with_what_to_do(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"folder|hf download"):
        load_detector(f"owlvit:{name}")
    assert time.monotonic() - start < 20


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_at_random(checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoints["owlvit"], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights.pop("class_head.dense0.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 .*class_head\.dense0\.weight"):
        load_detector(f"owlvit:{folder}")


@pytest.mark.parametrize("text", ["no json", "[]", json.dumps({})])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError):
        load_detector(f"owlvit:{tmp_path}")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, vfm_ops.detect; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
