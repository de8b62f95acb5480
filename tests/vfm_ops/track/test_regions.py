"""Small holes and islands of masks, against scipy's labelling."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from vfm_ops.track.regions import without_small_regions


def mended_by_hand(mask: np.ndarray, least: int) -> tuple[list[np.ndarray], bool]:
    """Holes below an area filled, then islands below it taken out, but the largest: a mask for each of those that are it."""
    holes, areas = labelled(~mask)
    filled = mask | np.isin(holes, np.flatnonzero(areas < least) + 1)
    islands, sizes = labelled(filled)
    small = np.flatnonzero(sizes < least)
    changed = bool((areas < least).any() or len(small))
    kept = np.flatnonzero(sizes == sizes.max()) if len(small) == len(sizes) > 0 else [-1]
    return [filled & ~np.isin(islands, small[small != one] + 1) for one in kept], changed


def labelled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the 8-connected regions, from 1 on, and their areas."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.floats(0.05, 0.95))
def test_small_regions_are_gone_and_the_largest_island_stays(seed, height, width, least, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    expected, changed = mended_by_hand(mask, least)
    ours, ours_changed = without_small_regions(mask, least)
    assert any(np.array_equal(ours, one) for one in expected)
    assert ours_changed == changed
    assert ours.any() or not mask.any()
