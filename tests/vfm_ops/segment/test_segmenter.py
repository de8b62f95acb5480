"""Masks of prompts on still images, against transformers' own processors and models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Sam2ImageProcessor, Sam2Model, Sam2Processor, SamImageProcessor, SamModel, SamProcessor

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.segment.segmenter import load_segmenter

POINTS = np.array([[[60.0, 40.0], [20.0, 100.0]], [[150.0, 90.0], [30.0, 30.0]]])
LABELS = np.array([[1, 0], [1, 1]])
BOXES = np.array([[20.0, 30.0, 120.0, 140.0], [90.0, 10.0, 190.0, 80.0]])


@pytest.fixture(params=["sam", "sam2"])
def pair(request, sam_folder, sam2_folder):
    """(our segmenter, transformers' model, its processor)."""
    if request.param == "sam":
        processor = SamProcessor(SamImageProcessor.from_pretrained(sam_folder))
        return load_segmenter(f"sam:{sam_folder}", device="cpu"), SamModel.from_pretrained(sam_folder).eval(), processor
    processor = Sam2Processor(Sam2ImageProcessor.from_pretrained(sam2_folder), target_size=128)
    return load_segmenter(f"sam2:{sam2_folder}", device="cpu"), Sam2Model.from_pretrained(sam2_folder).eval(), processor


def theirs(pair, image, multimask=True, **prompts):
    """(logits, scores, masks on the image) of transformers' whole path, its processor included."""
    _, model, processor = pair
    inputs = processor(images=image, return_tensors="pt", **prompts)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    sizes = {k: inputs.pop(k) for k in ("original_sizes", "reshaped_input_sizes") if k in inputs}
    with torch.no_grad():
        out = model(**inputs, multimask_output=multimask)
    masks = processor.image_processor.post_process_masks(out.pred_masks, **{k: v.tolist() for k, v in sizes.items()})
    return out.pred_masks[0], out.iou_scores[0], masks[0].numpy()


def assert_same(candidates, expected) -> None:
    logits, scores, masks = expected
    assert 0.001 < masks.mean() < 0.999, "the masks are trivial: this would show nothing"
    scale = logits.abs().max().item()
    assert (candidates.logits_NKhw - logits).abs().max().item() < 1e-4 * scale
    np.testing.assert_allclose(candidates.scores, scores.numpy(), atol=1e-5)
    assert (candidates.masks() != masks).mean() < 1e-4  # a logit of 1e-4 may have the other sign in another runtime


def test_points_give_transformers_masks_and_confidences(pair, photograph):
    ours = pair[0].segment(pair[0].encode(photograph), points=POINTS, labels=LABELS)
    assert_same(ours, theirs(pair, photograph, input_points=[POINTS.tolist()], input_labels=[LABELS.tolist()]))


def test_boxes_give_transformers_masks_and_confidences(pair, photograph):
    ours = pair[0].segment(pair[0].encode(photograph), boxes=BOXES, multimask_output=False)
    assert_same(ours, theirs(pair, photograph, multimask=False, input_boxes=[BOXES.tolist()]))


def test_earlier_answer_as_coarse_mask_gives_transformers_masks(pair, photograph):
    segmenter, model, processor = pair
    encoded = segmenter.encode(photograph)
    first = segmenter.segment(encoded, points=POINTS[:1], labels=LABELS[:1])
    coarse = first.logits_NKhw[0, 1]
    assert segmenter.geometry.letterbox or coarse.abs().max() > 32
    taken = coarse if segmenter.geometry.letterbox else coarse.clamp(-32, 32)  # as Meta's predictor of SAM 2 does
    ours = segmenter.segment(encoded, points=POINTS[:1], labels=LABELS[:1], mask_input=coarse.numpy()[None])
    inputs = processor(
        images=photograph, input_points=[POINTS[:1].tolist()], input_labels=[LABELS[:1].tolist()], return_tensors="pt"
    )
    with torch.no_grad():
        out = model(
            pixel_values=inputs["pixel_values"],
            input_points=inputs["input_points"].float(),
            input_labels=inputs["input_labels"],
            input_masks=taken[None, None],
        )
    assert (ours.logits_NKhw - out.pred_masks[0]).abs().max() < 1e-4 * out.pred_masks.abs().max()
    assert (ours.logits_NKhw - first.logits_NKhw).abs().max() > 1e-2 * out.pred_masks.abs().max()


def test_hundred_prompts_cost_one_image_encoding(pair, photograph):
    segmenter = pair[0]
    calls, encoder = [], segmenter.encoder
    segmenter.encoder = lambda pixels: calls.append(1) or encoder(pixels)
    encoded = segmenter.encode(photograph)
    for i in range(50):
        segmenter.segment(encoded, points=[[[float(i), 10.0]]], labels=[[1]])
    boxes = np.array([[i, i, i + 40.0, i + 50.0] for i in range(50)], np.float32)
    segmenter.segment(encoded, boxes=boxes)
    assert len(calls) == 1


def test_batched_prompts_of_different_shapes_are_each_what_they_would_be_alone(pair, photograph):
    segmenter = pair[0]
    encoded = segmenter.encode(photograph)
    points = [POINTS[0], POINTS[1][:1], np.array([[100.0, 75.0]]), POINTS[1]]
    labels = [LABELS[0], LABELS[1][:1], np.array([0]), LABELS[1]]
    together = segmenter.segment(encoded, points=points, labels=labels)
    for i, (xy, on) in enumerate(zip(points, labels)):
        alone = segmenter.segment(encoded, points=[xy], labels=[on])
        torch.testing.assert_close(together.logits_NKhw[i], alone.logits_NKhw[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.scores_NK[i], alone.scores_NK[0], rtol=1e-4, atol=1e-5)


def test_a_bool_mask_prompt_reaches_the_place_it_covers(pair):
    """A mask of the image's size lands on the same cells of the coarse input as the pixels it covers."""
    geometry = pair[0].geometry
    mask = torch.zeros(1, 1, 150, 200, dtype=torch.bool)
    mask[..., 60:120, 100:200] = True
    coarse = geometry.mask_prompt(mask, 32)
    back = geometry.to_image(coarse, (150, 200)) > 0
    assert (back == mask).float().mean() > 0.97


def test_images_of_one_batch_are_each_what_they_would_be_alone(pair, photograph):
    segmenter = pair[0]
    images = [photograph, np.ascontiguousarray(photograph[:, :90]), np.ascontiguousarray(photograph[::-1])]
    for image, encoded in zip(images, segmenter.encode_batch(images, at_once=2), strict=True):
        alone = segmenter.segment(segmenter.encode(image), boxes=BOXES[:1] / 3)
        together = segmenter.segment(encoded, boxes=BOXES[:1] / 3)
        torch.testing.assert_close(together.logits_NKhw, alone.logits_NKhw, rtol=1e-3, atol=1e-2)
        assert together.masks().shape[-2:] == image.shape[:2]


@pytest.mark.parametrize(("hole", "sprinkle"), [(20, 0), (0, 12), (20, 12)])
def test_small_holes_are_filled_and_small_specks_taken_out(pair, photograph, hole, sprinkle):
    """By scipy's labels: as SAM 2 does it, on the model's logits before they are resized."""
    from scipy.ndimage import label

    segmenter, encoded = pair[0], pair[0].encode(photograph)
    plain = segmenter.segment(encoded, points=POINTS, labels=LABELS)
    mended = segmenter.segment(encoded, points=POINTS, labels=LABELS, max_hole_area=hole, max_sprinkle_area=sprinkle)
    expected, changed = plain.logits_NKhw.numpy().copy(), 0
    for logits in expected.reshape(-1, *expected.shape[-2:]):
        inside = logits > 0
        for mask, most, value in ((~inside, hole, 10.0), (inside, sprinkle, -10.0)):
            regions, count = label(mask, np.ones((3, 3)))
            for region in range(1, count + 1):
                if (regions == region).sum() <= most:
                    logits[regions == region] = value
                    changed += 1
    assert changed, "nothing to mend: this would show nothing"
    on_image = segmenter.geometry.to_image(torch.from_numpy(expected), encoded.size).numpy()
    assert np.array_equal(mended.masks(return_logits=True), on_image)
    assert np.array_equal(mended.masks(), on_image > 0)
    assert torch.equal(mended.logits_NKhw, plain.logits_NKhw), "what is passed back as mask_input is not mended"


def test_text_goes_by_way_of_the_detectors_boxes(pair, photograph):
    found = SimpleNamespace(
        boxes=BOXES.astype(np.float32), scores=np.array([0.9, 0.4], np.float32), prompt_index=np.array([1, 0])
    )
    asked = []
    detector = SimpleNamespace(detect=lambda images, prompts: asked.append((len(images), prompts)) or [found])
    segments = pair[0].segment_text(photograph, ["cup", "spoon"], detector)
    assert asked == [(1, [["cup", "spoon"]])]
    expected, _ = pair[0].segment(pair[0].encode(photograph), boxes=BOXES, multimask_output=False).best()
    assert np.array_equal(segments.masks, expected)
    assert segments.prompt_index.tolist() == [1, 0]


def test_text_that_nothing_answers_to_gives_no_masks_and_costs_no_encoding(pair, photograph):
    nothing = SimpleNamespace(boxes=np.zeros((0, 4)), scores=np.zeros(0), prompt_index=np.zeros(0, int))
    segments = pair[0].segment_text(photograph, ["unicorn"], SimpleNamespace(detect=lambda *_: [nothing]))
    assert segments.masks.shape == (0, 150, 200)
    assert pair[0].encodings == 0


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"points": [[[float("nan"), 3.0]]], "labels": [[1]]}, "not a number"),
        ({"points": [[[500.0, 3.0]]], "labels": [[1]]}, "outside the 200 x 150"),
        ({"points": [[[5.0, 3.0]]], "labels": [[7]]}, "label is 1"),
        ({"points": [[[5.0, 3.0]]]}, "need labels"),
        ({"boxes": np.array([[300.0, 10.0, 340.0, 60.0]])}, "outside the 200 x 150"),
        ({"boxes": np.array([[30.0, 10.0, 20.0, 60.0]])}, "empty box"),
        ({"boxes": np.array([[np.inf, 10.0, 20.0, 60.0]])}, "four finite numbers"),
        ({"boxes": BOXES, "points": POINTS[:1], "labels": LABELS[:1]}, "don't match"),
        ({"mask_input": np.zeros((1, 20, 20), bool)}, "bool mask of the image's 150 x 200"),
        ({}, "no prompt"),
    ],
)
def test_a_bad_prompt_is_named(pair, photograph, prompt, told):
    encoded = pair[0].encode(photograph)
    with pytest.raises(UsageError, match=told):
        pair[0].segment(encoded, **prompt)


def test_an_empty_text_prompt_is_refused(pair, photograph):
    with pytest.raises(UsageError, match="empty"):
        pair[0].segment_text(photograph, [" "], SimpleNamespace(detect=lambda *_: []))


def test_a_checkpoint_of_another_architecture_is_named(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(
        CLIPConfig(text_config=small, vision_config=small | {"image_size": 32}, projection_dim=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="checkpoint of 'clip'"):
        load_segmenter(f"sam:{tmp_path}")


def test_a_hub_id_without_a_network_says_what_to_fetch():
    with pytest.raises(WeightsUnavailable, match="facebook/sam-vit-base"):
        load_segmenter("sam:facebook/sam-vit-base")


def test_a_checkpoint_that_lacks_weights_is_refused_rather_than_filled_at_random(sam_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in sam_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(sam_folder / "model.safetensors")
    dropped = next(name for name in weights if "mask_decoder" in name)
    save_file({k: v for k, v in weights.items() if k != dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=dropped):
        load_segmenter(f"sam:{tmp_path}")
