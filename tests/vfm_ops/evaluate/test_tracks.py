"""HOTA, IDF1 and MOTA against closed forms and against py-motmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conftest import optional_package
from tests.vfm_ops.evaluate.rows import encode, rectangle
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.tracks import similarity, track_metrics

FRAMES = 20


@pytest.fixture(scope="module", autouse=True)
def _trackeval():
    optional_package("trackeval")  # which track_metrics calls


def scene(frames: int = FRAMES, objects: int = 2, shift: float = 0.0):
    """Objects of 100 px, far apart, that stand still."""
    corners = np.array([[300.0 * k, 0.0] for k in range(objects)])
    boxes = np.hstack([corners, corners + 100]) + np.array([shift, 0, shift, 0])
    return [{"ids": list(range(objects)), "boxes": boxes} for _ in range(frames)]


def test_a_perfect_prediction_scores_one_whatever_the_ids_are_called():
    found = [{**f, "ids": ["x", "y"]} for f in scene()]
    result = track_metrics(scene(), found)
    for key in ("HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTA"):
        assert result[key] == pytest.approx(1.0)
    assert (result["IDSW"], result["FP"], result["FN"], result["TP"]) == (0, 0, 0, 2 * FRAMES)


def test_ids_swapped_midway_cost_association_alone():
    """Two of 40 detections switch: MOTA = 1 - 2/40. Each id is right half of the time: IDF1 = 1/2.
    A match's association is 10 shared of 20 + 20 - 10 frames, 1/3, so HOTA = sqrt(1 * 1/3) at every threshold."""
    found = [{**f, "ids": [0, 1] if t < FRAMES // 2 else [1, 0]} for t, f in enumerate(scene())]
    result = track_metrics(scene(), found)
    assert result["IDSW"] == 2
    assert result["MOTA"] == pytest.approx(1 - 2 / (2 * FRAMES))
    assert result["IDF1"] == pytest.approx(0.5)
    assert result["DetA"] == pytest.approx(1.0)
    assert result["HOTA"] == pytest.approx(math.sqrt(1 / 3))


def test_one_object_never_found_costs_half_of_the_recall():
    found = [{"ids": [0], "boxes": f["boxes"][:1]} for f in scene()]
    result = track_metrics(scene(), found)
    assert result["MOTA"] == pytest.approx(0.5)
    assert result["IDF1"] == pytest.approx(2 * FRAMES / (2 * FRAMES + FRAMES))
    assert result["HOTA"] == pytest.approx(math.sqrt(0.5))
    assert (result["FN"], result["ML"], result["MT"]) == (FRAMES, 1, 1)


@pytest.mark.parametrize("iou", [0.42, 0.62, 0.83])
def test_a_shift_counts_at_the_thresholds_below_its_overlap(iou):
    """Thresholds are 0.05, ..., 0.95; matched at k of 19, HOTA averages 1 over k and 0 over the rest."""
    shift = 100 * (1 - iou) / (1 + iou)
    result = track_metrics(scene(), scene(shift=shift))
    assert result["HOTA"] == pytest.approx(math.floor(iou / 0.05) / 19)
    assert result["MOTA"] == pytest.approx(1.0 if iou >= 0.5 else -1.0)


def test_sequences_combine_by_counts_and_are_told_one_by_one():
    truth = {"good": scene(10), "bad": scene(30)}
    found = {"good": scene(10), "bad": [{"ids": [], "boxes": np.zeros((0, 4))}] * 30}
    result = track_metrics(truth, found, per_sequence=True)
    assert result["MOTA"] == pytest.approx(10 / 40)
    assert result["sequences"]["good"]["MOTA"] == 1.0
    assert result["sequences"]["bad"]["MOTA"] == 0.0


@pytest.fixture
def motmetrics():
    return optional_package("motmetrics")


def test_figures_agree_with_motmetrics_on_a_noisy_scene(motmetrics):
    rng = np.random.default_rng(1)
    truth, found = [], []
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for t in range(60):
        corners = np.stack([np.arange(4) * 40.0 + t, 10.0 * np.arange(4)], 1)
        boxes = np.concatenate([corners, corners + 50], 1)
        kept = rng.random(4) > 0.2
        ids = np.arange(4) if t < 30 else np.array([1, 0, 2, 3])
        noisy = (boxes + rng.normal(0, 5, boxes.shape))[kept]
        truth.append({"ids": list(range(4)), "boxes": boxes})
        found.append({"ids": ids[kept].tolist(), "boxes": noisy})
        distance = 1 - similarity(truth[-1], found[-1])
        accumulator.update(list(range(4)), ids[kept].tolist(), np.where(distance > 0.5, np.nan, distance))
    names = ["mota", "idf1", "num_switches", "num_misses", "num_false_positives"]
    expected = motmetrics.metrics.create().compute(accumulator, metrics=names).iloc[0]
    result = track_metrics(truth, found)
    assert result["MOTA"] == pytest.approx(expected["mota"], abs=1e-9)
    assert result["IDF1"] == pytest.approx(expected["idf1"], abs=1e-9)
    assert (result["IDSW"], result["FN"], result["FP"]) == tuple(int(expected[n]) for n in names[2:])


def test_masks_count_where_both_have_them_and_labels_keep_apart():
    """Two L-shaped halves of one square: their boxes overlap, their masks do not."""
    upper, lower = rectangle(0, 0, 40, 20), rectangle(0, 20, 40, 20)
    box = [[0, 0, 40, 40]]
    a = {"ids": [1], "boxes": box, "masks": [encode(upper)], "labels": ["cat"]}
    b = {"ids": [1], "boxes": box, "masks": [encode(lower)], "labels": ["cat"]}
    assert similarity(a, b)[0, 0] == 0.0
    del b["masks"]
    assert similarity(a, b)[0, 0] == 1.0
    b["labels"] = ["dog"]
    assert similarity(a, b)[0, 0] == 0.0


def test_sequences_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="20 frames"):
        track_metrics(scene(), scene(10))
    with pytest.raises(UsageError, match="one side only"):
        track_metrics({"a": scene()}, {"b": scene()})
    with pytest.raises(UsageError, match="twice"):
        track_metrics(scene(), [{**f, "ids": [0, 0]} for f in scene()])
    with pytest.raises(UsageError, match="2 ids"):
        track_metrics(scene(), [{**f, "boxes": f["boxes"][:1]} for f in scene()])
