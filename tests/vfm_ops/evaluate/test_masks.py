"""J and F against closed forms and against TrackEval."""

from __future__ import annotations

import contextlib
import io
import sys
import types

import numpy as np
import pytest

from tests.conftest import optional_package
from tests.vfm_ops.evaluate.rows import HEIGHT, WIDTH, encode, rectangle
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.masks import as_mask, boundary_accuracy, boundary_pixels, j_and_f


def test_a_perfect_prediction_scores_one_as_rle_or_array():
    frames = [{1: rectangle(5 + t, 5, 20, 20), 2: rectangle(50, 30 - t, 10, 12)} for t in range(6)]
    result = j_and_f(frames, [{k: encode(m) for k, m in f.items()} for f in frames])
    assert (result["J"], result["F"], result["J&F"]) == (1.0, 1.0, 1.0)


def test_a_shifted_rectangle_has_the_overlap_and_the_boundary_that_geometry_says():
    """Shift 10 of 20 columns: J = 10 * 20 / (30 * 20). Only pixels within one pixel of the other's edge match in F."""
    truth, found = rectangle(10, 10, 20, 20), rectangle(20, 10, 20, 20)
    result = j_and_f([{1: truth}], [{1: found}])
    assert result["J"] == pytest.approx(1 / 3)
    assert 0.2 < result["F"] < 0.7


def test_a_shift_within_the_tolerance_is_no_boundary_error():
    """The diagonal of 1000 x 1000 is 1414 px, 0.8 % of it is 12 px: a shift by 12 matches everywhere, by 40 not."""
    base = np.zeros((1000, 1000), bool)
    base[300:700, 300:700] = True
    assert boundary_accuracy(base, np.roll(base, 12, axis=1)) == 1.0
    assert boundary_accuracy(base, np.roll(base, 40, axis=1)) < 0.75


def test_missing_and_invented_objects_score_zero_and_absent_ones_one():
    mask = rectangle(5, 5, 20, 20)
    truth = [{1: mask}, {}, {1: mask}, {1: mask}]
    found = [{}, {}, {1: mask}, {1: rectangle(60, 40, 5, 5)}]
    result = j_and_f(truth, found)
    assert result["J"] == pytest.approx((0 + 1 + 1 + 0) / 4)
    assert result["F"] == pytest.approx((0 + 1 + 1 + 0) / 4)


def test_an_object_that_enters_late_may_not_be_seen_before():
    mask = rectangle(5, 5, 20, 20)
    truth = [{}, {}, {7: mask}]
    assert j_and_f(truth, [{}, {}, {7: mask}])["J"] == 1.0
    assert j_and_f(truth, [{7: mask}, {}, {7: mask}])["J"] == pytest.approx(2 / 3)


def test_the_boundary_of_a_full_frame_is_empty():
    assert not boundary_pixels(np.ones((HEIGHT, WIDTH), bool)).any()


@pytest.fixture
def trackeval_j_and_f(monkeypatch):
    """TrackEval's own measure; its only use of scikit-image is a disc, given here by its definition."""
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = optional_package("trackeval.metrics")
    morphology = types.ModuleType("skimage.morphology")

    def disk(radius):
        span = np.arange(-int(radius), int(radius) + 1)
        return (span[:, None] ** 2 + span**2 <= radius**2).astype(np.uint8)

    morphology.disk = disk
    package = types.ModuleType("skimage")
    package.morphology = morphology
    monkeypatch.setitem(sys.modules, "skimage", package)
    monkeypatch.setitem(sys.modules, "skimage.morphology", morphology)
    return metrics.JAndF()


def test_random_sequences_score_what_trackeval_says(trackeval_j_and_f):
    rng = np.random.default_rng(3)
    truth, found = [], []
    for t in range(12):
        boxes = {k: (5 + 4 * t * (k == 0), 5 + 28 * k, 22, 20) for k in range(2)}
        truth.append({k: rectangle(*b) for k, b in boxes.items() if not (k == 1 and t in (4, 5))})
        noisy = {k: (b[0] + rng.integers(-2, 3), b[1] + rng.integers(-2, 3), b[2] + rng.integers(0, 6), b[3])
                 for k, b in boxes.items()}  # fmt: skip
        found.append({k: rectangle(*b) for k, b in noisy.items() if not (k == 0 and t == 7)})
    sides = {}
    for name, frames in (("gt", truth), ("tracker", found)):
        sides[f"{name}_ids"] = [np.array(sorted(f)) for f in frames]
        sides[f"{name}_dets"] = [[encode(f[k]) for k in sorted(f)] for f in frames]
    data = {**sides, "num_timesteps": 12, "num_gt_ids": 2, "num_tracker_ids": 2}
    expected = trackeval_j_and_f.eval_sequence(data)
    result = j_and_f(truth, found)
    assert result["J"] == pytest.approx(expected["J-Mean"], abs=1e-9)
    assert result["F"] == pytest.approx(expected["F-Mean"], abs=1e-9)
    assert 0.5 < result["J"] < 0.95


def test_rle_of_every_spelling_is_the_same_mask():
    mask = rectangle(3, 4, 11, 9)
    text = encode(mask)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel().astype(int), [2]])))
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    for spelling in (text, {**text, "counts": text["counts"].encode()}, {**text, "counts": counts}, mask):
        np.testing.assert_array_equal(as_mask(spelling), mask)


def test_sequences_of_different_length_or_size_are_refused():
    mask = rectangle(5, 5, 5, 5)
    with pytest.raises(UsageError, match="after 1 frames"):
        j_and_f([{1: mask}], [{1: mask}, {1: mask}])
    with pytest.raises(UsageError, match="shape"):
        j_and_f([{1: mask}], [{1: mask[:10]}])
    with pytest.raises(UsageError, match="no object"):
        j_and_f([{}], [{1: mask}])
