"""If these fail, the figures in the model cards are not what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from vfm_ops.pocket.score import average_precision, boundary_f, box_iou, mask_iou, match_detections


def _disc(radius: float, cx: float = 64, cy: float = 64) -> np.ndarray:
    ys, xs = np.mgrid[0:128, 0:128]
    return np.hypot(xs - cx, ys - cy) <= radius


def test_box_iou_agrees_with_torchvision():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.uniform(0, 50, (n, 2, 2)), axis=1).reshape(n, 4) for n in (7, 9))
    expected = torchvision_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(box_iou(a, b), expected, atol=1e-6)


def test_average_precision_of_a_worked_example():
    # Ranked hit, miss, hit of 4 positives: precision 1 up to recall 1/4, 2/3 up to 2/4, then nothing.
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 4) == pytest.approx(
        (1 + 2 / 3) / 4
    )
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0
    assert average_precision(np.array([0.2, 0.9]), np.array([False, True]), 1) == 1


def test_a_ground_truth_is_matched_once_by_the_best_scored_box():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], float)
    hits = match_detections(boxes, np.array([0.5, 0.9, 0.4]), np.array([[0, 0, 10, 10]], float))
    assert hits.tolist() == [False, True, False]


def test_region_similarity_of_nested_discs_is_the_ratio_of_areas():
    assert mask_iou(_disc(20), _disc(40)) == pytest.approx(0.25, abs=0.01)
    empty = np.zeros((128, 128), bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, _disc(5)) == 0


def test_contour_accuracy_forgives_two_pixels_and_no_more():
    assert boundary_f(_disc(30), _disc(30)) == 1
    assert boundary_f(_disc(30), _disc(31)) > 0.99
    assert boundary_f(_disc(30), _disc(37)) == 0
    empty = np.zeros((128, 128), bool)
    assert boundary_f(empty, empty) == 1
    assert boundary_f(empty, _disc(9)) == 0
