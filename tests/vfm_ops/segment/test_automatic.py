"""Automatic masks against transformers' mask-generation pipeline on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MaskGenerationPipeline, Sam2ImageProcessor, Sam2Model, SamImageProcessor, SamModel

from vfm_ops.segment.automatic import GridSettings, generate_masks, point_grid, stability_scores
from vfm_ops.segment.segmenter import load_segmenter
from vfm_ops.track.masks import decode_rle

# Loose enough that masks of random weights pass, tight enough that each filter drops some.
LOOSE = {
    "sam": {"min_iou": 0.05, "min_stability": 0.5, "max_overlap": 0.95},
    "sam2": {"min_iou": 0.4, "min_stability": 0.6, "max_overlap": 0.97},
}


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_the_grid_finds_what_transformers_pipeline_finds(family, sam_folder, sam2_folder, photograph):
    # transformers places SAM 2's grid as if the image were padded, so that only a square one is a fair comparison.
    image = photograph if family == "sam" else np.ascontiguousarray(photograph[:, :150])
    limits = LOOSE[family]
    folder = sam_folder if family == "sam" else sam2_folder
    model_class, processor_class = (SamModel, SamImageProcessor) if family == "sam" else (Sam2Model, Sam2ImageProcessor)
    pipeline = MaskGenerationPipeline(
        model=model_class.from_pretrained(folder).eval(), image_processor=processor_class.from_pretrained(folder)
    )
    from PIL import Image

    with torch.no_grad():
        expected = pipeline(
            Image.fromarray(image),
            points_per_crop=6,
            points_per_batch=16,
            pred_iou_thresh=limits["min_iou"],
            stability_score_thresh=limits["min_stability"],
            crops_nms_thresh=limits["max_overlap"],
            output_bboxes_mask=True,
        )
    ours = generate_masks(
        load_segmenter(f"{family}:{folder}", device="cpu"),
        image,
        GridSettings(points_per_side=6, points_at_once=16, **limits),
    )
    assert len(expected["masks"]) > 2, f"nothing to compare: {len(expected['masks'])}"
    assert len(ours) == len(expected["masks"])
    np.testing.assert_allclose([m.score for m in ours], expected["scores"].numpy(), atol=1e-5)
    for mask, their_mask in zip(ours, expected["masks"]):
        assert (decode_rle(mask.rle) != np.asarray(their_mask)).mean() < 1e-4


def test_small_masks_are_left_out(sam_folder, photograph):
    segmenter = load_segmenter(f"sam:{sam_folder}", device="cpu")
    loose = {"points_per_side": 4, "min_iou": 0.0, "min_stability": 0.0, "max_overlap": 1.0}
    everything = generate_masks(segmenter, photograph, GridSettings(**loose))
    areas = sorted(m.area for m in everything)
    limit = areas[len(areas) // 2] + 1
    kept = generate_masks(segmenter, photograph, GridSettings(**loose, min_area=limit))
    assert sorted(m.area for m in kept) == [a for a in areas if a >= limit]
    assert all(int(decode_rle(m.rle).sum()) == m.area for m in kept)


def test_an_encoded_image_is_not_encoded_again(sam_folder, photograph):
    segmenter = load_segmenter(f"sam:{sam_folder}", device="cpu")
    generate_masks(segmenter, segmenter.encode(photograph), GridSettings(points_per_side=3))
    assert segmenter.encodings == 1


def test_grid_points_are_cell_centres():
    assert point_grid(2, (40, 80)).tolist() == [[20, 10], [60, 10], [20, 30], [60, 30]]


def test_stability_is_the_overlap_of_two_cuts():
    logits = torch.tensor([[[3.0, 0.5], [-0.5, -3.0]], [[-5.0, -5.0], [-5.0, -5.0]]])
    assert stability_scores(logits, 1.0).tolist() == pytest.approx([1 / 3, 0.0])
