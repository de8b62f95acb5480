"""Every detector gives the boxes and scores of transformers' own model, processor and post-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms
from transformers import (
    AutoProcessor,
    GroundingDinoForObjectDetection,
    OmDetTurboForObjectDetection,
    Owlv2ForObjectDetection,
    OwlViTForObjectDetection,
)

from tests.vfm_ops.detect import tiny

SIZES = [(48, 80), (70, 40), (64, 64), (33, 95)]
OWN_PROMPTS = [["person", "red car"], ["cat", "dog"], ["traffic light", "bicycle"], ["a couch", "the cat"]]
OWL = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}


def by_score(boxes, scores, *more):
    order = np.argsort(-np.asarray(scores), kind="stable")
    return [np.asarray(a)[order] for a in (boxes, scores, *more)]


def assert_same(found, boxes, scores):
    boxes, scores = by_score(boxes, scores)
    assert len(found) == len(scores) > 0
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)


@torch.inference_mode()
def test_grounding_dino_finds_the_boxes_of_transformers_on_images_of_different_sizes(checkpoints, load):
    images, prompts = tiny.frames(SIZES), OWN_PROMPTS
    model = GroundingDinoForObjectDetection.from_pretrained(checkpoints["grounding-dino"]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints["grounding-dino"])
    inputs = processor(images=images, text=prompts, return_tensors="pt", padding=True)
    expected = processor.post_process_grounded_object_detection(
        model(**inputs), inputs["input_ids"], threshold=0.4, target_sizes=[i.shape[:2] for i in images]
    )
    found = load("grounding-dino").detect(images, prompts, thresholds=0.4, nms_iou=None, clip=False)
    for ours, theirs in zip(found, expected):
        assert_same(ours, theirs["boxes"], theirs["scores"])


@torch.inference_mode()
def test_a_grounding_dino_box_has_the_prompt_of_its_best_token(checkpoints, load):
    """Oracle: tokens are counted prompt by prompt, without offsets: [CLS] w w . w . [SEP]."""
    prompts = ["red car", "cats", "traffic light", "dog"]
    images = tiny.frames(SIZES[:2], seed=3)
    model = GroundingDinoForObjectDetection.from_pretrained(checkpoints["grounding-dino"]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints["grounding-dino"])
    probs = model(**processor(images=images, text=[prompts] * 2, return_tensors="pt")).logits.sigmoid()
    columns, start = [], 1
    for prompt in prompts:
        length = len(processor.tokenizer.tokenize(prompt))
        columns.append(probs[:, :, start : start + length].amax(-1))
        start += length + 1
    best = torch.stack(columns, -1).argmax(-1).numpy()
    found = load("grounding-dino").detect(images, [prompts] * 2, thresholds=0.0, nms_iou=None, clip=False)
    for i, ours in enumerate(found):
        expected = by_score(best[i], probs[i].amax(-1))[0]
        np.testing.assert_array_equal(ours.prompt_index, expected)
    assert len({p for ours in found for p in ours.prompt_index}) >= 3


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
@torch.inference_mode()
def test_owl_finds_the_boxes_of_transformers_on_images_of_different_sizes(checkpoints, load, family):
    images, prompts = tiny.frames(SIZES), OWN_PROMPTS
    model = OWL[family].from_pretrained(checkpoints[family]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints[family])
    inputs = processor(images=images, text=prompts, return_tensors="pt")
    expected = processor.post_process_grounded_object_detection(
        model(**inputs), threshold=0.3, target_sizes=[i.shape[:2] for i in images]
    )
    found = load(family).detect(images, prompts, thresholds=0.3, nms_iou=None, clip=False)
    for ours, theirs in zip(found, expected):
        assert_same(ours, theirs["boxes"], theirs["scores"])
        np.testing.assert_array_equal(ours.prompt_index, by_score(theirs["labels"], theirs["scores"])[0])


@pytest.mark.parametrize("family", ["owlvit", "omdet-turbo"])
def test_prompts_of_a_neighbour_in_the_batch_change_nothing(load, family):
    """An image with one prompt beside an image with three gets what it gets alone: no padded prompt can win."""
    images = tiny.frames(SIZES[:2], seed=5)
    detector = load(family)
    together = detector.detect(images, [["cat"], ["dog", "person", "red car"]], thresholds=0.0, nms_iou=None)
    alone = detector.detect(images[:1], ["cat"], thresholds=0.0, nms_iou=None)
    np.testing.assert_allclose(together[0].boxes, alone[0].boxes, atol=1e-3)
    np.testing.assert_allclose(together[0].scores, alone[0].scores, atol=1e-5)
    assert set(together[0].labels) == {"cat"}


@torch.inference_mode()
def test_omdet_turbo_finds_the_boxes_of_transformers_on_images_of_different_sizes(checkpoints, load):
    images, prompts = tiny.frames(SIZES), OWN_PROMPTS
    model = OmDetTurboForObjectDetection.from_pretrained(checkpoints["omdet-turbo"]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints["omdet-turbo"])
    inputs = processor(images=images, text=prompts, return_tensors="pt")
    expected = processor.post_process_grounded_object_detection(
        model(**inputs), text_labels=prompts, threshold=0.001, nms_threshold=0.5,
        target_sizes=[i.shape[:2] for i in images],
    )  # fmt: skip
    found = load("omdet-turbo").detect(images, prompts, thresholds=0.001, nms_iou=0.5)
    for ours, theirs, own in zip(found, expected, prompts):
        assert_same(ours, theirs["boxes"], theirs["scores"])
        assert ours.prompts == tuple(own)
        assert ours.labels == [str(s) for s in by_score(theirs["text_labels"], theirs["scores"])[0]]


@torch.inference_mode()
def test_one_shot_detection_matches_transformers_image_guided_detection(checkpoints, load):
    images, query = tiny.frames(SIZES[:2]), tiny.frames([(64, 48)], seed=9)[0]
    model = OwlViTForObjectDetection.from_pretrained(checkpoints["owlvit"]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints["owlvit"])
    inputs = processor(images=images, query_images=[query] * 2, return_tensors="pt")
    outputs = model.image_guided_detection(**inputs)
    found = load("owlvit").detect_like(images, query, None, threshold=0.0, nms_iou=None, clip=False)
    for i, ours in enumerate(found):
        cx, cy, w, h = outputs.target_pred_boxes[i].unbind(-1)
        scale = torch.tensor([images[i].shape[1], images[i].shape[0]] * 2)
        boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * scale
        assert_same(ours, boxes, outputs.logits[i].amax(-1).sigmoid())
        assert set(ours.labels) == {"query image"}


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
@torch.inference_mode()
def test_the_query_box_chooses_the_object_that_is_looked_for(checkpoints, load, family):
    """Oracle in numpy: of the patches whose boxes overlap the query box nearly best, the one least like the mean."""
    query, target = tiny.frames([(64, 96), (50, 50)], seed=4)
    model = OWL[family].from_pretrained(checkpoints[family]).eval()
    processor = AutoProcessor.from_pretrained(checkpoints[family])
    pixels = processor.image_processor([query, target], return_tensors="pt")["pixel_values"]
    grid = model.image_embedder(pixel_values=pixels)[0]
    embeds = model.class_predictor(grid.flatten(1, 2))[1][0].numpy()
    cx, cy, w, h = model.box_predictor(grid.flatten(1, 2), grid)[0].numpy().T
    sides = (96, 96) if family == "owlv2" else (96, 64)
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * (sides * 2)
    chosen = set()
    for wanted in ([4, 4, 20, 20], [60, 30, 90, 60], [0, 0, 96, 64]):
        low, high = np.maximum(boxes[:, :2], wanted[:2]), np.minimum(boxes[:, 2:], wanted[2:])
        shared = np.prod(np.clip(high - low, 0, None), -1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1) + (wanted[2] - wanted[0]) * (wanted[3] - wanted[1])
        iou = shared / (areas - shared)
        fitting = np.flatnonzero(iou >= 0.8 * iou.max())
        best = fitting[(embeds[fitting] @ embeds.mean(0)).argmin()]
        chosen.add(best)
        logits = model.class_predictor(grid.flatten(1, 2)[1:], torch.from_numpy(embeds[best])[None, None])[0][0, :, 0]
        found = load(family).detect_like([target], query, wanted, threshold=0.0, nms_iou=None, clip=False)[0]
        np.testing.assert_allclose(found.scores, np.sort(logits.sigmoid().numpy())[::-1], atol=1e-5)
    assert len(chosen) == 3


def test_suppression_is_by_prompt_as_in_torchvision(load):
    images = tiny.frames(SIZES)
    detector = load("owlvit")
    every = detector.detect(images, OWN_PROMPTS, thresholds=0.0, nms_iou=None, clip=False)
    kept = detector.detect(images, OWN_PROMPTS, thresholds=0.0, nms_iou=0.05, clip=False)
    for a, b in zip(every, kept):
        order = batched_nms(*(torch.from_numpy(x) for x in (a.boxes, a.scores, a.prompt_index)), 0.05).numpy()
        assert len(order) < len(a)
        np.testing.assert_array_equal(b.boxes, a.boxes[order])
