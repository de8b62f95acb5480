"""Sampling modes against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfm_ops.errors import UsageError
from vfm_ops.media.sampling import Sampling, sample_fps, sample_shots, thin_evenly

times = st.lists(st.integers(1, 4000), min_size=1, max_size=80).map(lambda steps: np.cumsum([0, *steps]) / 1000.0)


@given(times, st.sampled_from([0.3, 1.0, 2.0, 7.5, 24.0]))
def test_fps_takes_the_nearest_frame_to_each_grid_time(pts_s, fps):
    grid, expected = 0, set()
    while grid / fps <= pts_s[-1] + 1e-6 / fps:
        expected.add(int(np.abs(pts_s - grid / fps).argmin()))
        grid += 1
    chosen = sample_fps(pts_s, fps)
    distance = np.abs(pts_s[None] - np.arange(grid)[:, None] / fps)
    nearest = distance[:, chosen].min(axis=1)
    assert np.allclose(nearest, distance.min(axis=1), atol=1e-9)
    assert len(chosen) <= grid
    assert len(set(chosen.tolist()) ^ expected) <= 2 * (np.diff(np.sort(distance, axis=1)[:, :2]) < 1e-9).sum()


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 9))
def test_shot_samples_are_spread_and_inside(length, first, k):
    chosen = sample_shots([(first, first + length - 1)], k)
    assert len(chosen) == min(k, length)
    assert chosen[0] >= first
    assert chosen[-1] < first + length
    gaps = np.diff(np.concatenate([[first - (chosen[0] - first) - 1], chosen]))[1:]
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=300), st.integers(1, 50))
def test_cap_thins_evenly_and_keeps_the_ends(values, cap):
    indices = np.array(sorted(values), np.int64)
    thinned = thin_evenly(indices, cap)
    assert len(thinned) == min(cap, len(indices))
    assert set(thinned.tolist()) <= set(values)
    if 1 < cap <= len(indices):
        assert thinned[0] == indices[0]
        assert thinned[-1] == indices[-1]
        position = np.searchsorted(indices, thinned)
        assert np.ptp(np.diff(position)) <= 1


def test_modes_on_a_constant_rate_video():
    pts_s, keys = np.arange(250) / 25.0, np.array([0, 100, 200])
    assert len(Sampling("all").indices(pts_s, keys)) == 250
    assert Sampling("fps", fps=1.0).indices(pts_s, keys).tolist() == list(range(0, 250, 25))
    assert Sampling("every_n", n=60).indices(pts_s, keys).tolist() == [0, 60, 120, 180, 240]
    assert Sampling("keyframes").indices(pts_s, keys).tolist() == [0, 100, 200]
    assert Sampling("per_shot", k=1).indices(pts_s, keys, [(0, 99), (100, 249)]).tolist() == [50, 175]
    assert Sampling("all", max_frames=3).indices(pts_s, keys).tolist() == [0, 124, 249]


def test_wrong_settings_name_the_valid_ones():
    with pytest.raises(UsageError, match="per_shot"):
        Sampling("sometimes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fps"):
        Sampling("fps", fps=0)
