"""Average precision says what closed forms say."""

from __future__ import annotations

import numpy as np
import pytest

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.boxes import box_map


def images(count: int, per_image: int = 2):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        corner = np.stack([np.arange(per_image) * 150.0, rng.uniform(0, 50, per_image)], 1)
        boxes = np.concatenate([corner, corner + 100], 1)
        found.append({"boxes": boxes, "labels": ["cat", "dog"][:per_image], "scores": np.full(per_image, 0.9)})
    return found


def test_a_perfect_prediction_scores_one():
    result = box_map(images(5), images(5))
    for key in ("mAP", "AP50", "AP75", "AR"):
        assert result[key] == pytest.approx(1.0)
    assert result["per_label"] == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert np.isnan(result["AP_small"])


def test_half_of_the_boxes_dropped_halves_recall_and_precision_area():
    """COCO averages precision at recalls 0, 0.01, ..., 1: 51 of 101 are reached."""
    truth = images(10, 1)
    found = [p if i % 2 else {"boxes": [], "labels": [], "scores": []} for i, p in enumerate(images(10, 1))]
    result = box_map(truth, found)
    assert result["mAP"] == pytest.approx(51 / 101)
    assert result["AR"] == pytest.approx(0.5)


@pytest.mark.parametrize(("iou", "reached"), [(0.6, 3), (0.8, 7), (0.49, 0)])
def test_a_shift_counts_at_the_thresholds_below_its_overlap(iou, reached):
    """A 100 px box shifted by d overlaps (100 - d) / (100 + d); thresholds are 0.50, 0.55, ..., 0.95."""
    iou += 1e-6
    shift = 100 * (1 - iou) / (1 + iou)
    found = [{**p, "boxes": p["boxes"] + [shift, 0, shift, 0]} for p in images(4)]
    result = box_map(images(4), found)
    assert result["mAP"] == pytest.approx(reached / 10)
    assert result["AP50"] == (1.0 if reached else 0.0)


def test_a_wrong_label_is_no_hit_and_a_confident_mistake_costs_precision():
    swapped = [{**p, "labels": ["dog", "cat"]} for p in images(3)]
    assert box_map(images(3), swapped)["mAP"] == 0.0
    doubled = [
        {"boxes": np.vstack([p["boxes"], [[500, 500, 600, 600]]]), "labels": ["cat", "cat"], "scores": [0.5, 0.9]}
        for p in images(1, 1)
    ]
    assert box_map(images(1, 1), doubled)["AP50"] == pytest.approx(0.5)


def test_no_prediction_at_all_scores_zero():
    empty = [{"boxes": np.zeros((0, 4)), "labels": [], "scores": []}] * 2
    assert box_map(images(2), empty)["mAP"] == 0.0


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        (images(2), images(3)),
        ([{"boxes": [], "labels": []}], [{"boxes": [], "labels": [], "scores": []}]),
        (images(1), [{"boxes": [[0, 0, 1, 1]], "labels": [], "scores": [1]}]),
        (images(1), [{"boxes": [[0, 0, np.nan, 1]], "labels": ["cat"], "scores": [1]}]),
    ],
)
def test_inputs_that_do_not_fit_are_refused(truth, found):
    with pytest.raises(UsageError):
        box_map(truth, found)
