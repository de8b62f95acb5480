"""Small holes and islands of masks, against scipy's labelling."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from vfm_ops.track.regions import without_small_regions


def mended_by_hand(mask: np.ndarray, least: int) -> tuple[np.ndarray, bool]:
    """Holes below an area filled, then islands below it taken out, but the largest."""
    changed = False
    for inside in (False, True):
        labels, count = ndimage.label(mask == inside, np.ones((3, 3)))
        areas = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
        gone = [n for n, area in enumerate(areas, 1) if area < least]
        changed = changed or bool(gone)
        if inside and gone and len(gone) == count:
            gone.remove(1 + int(np.argmax(areas)))
        mask = np.where(np.isin(labels, gone), not inside, mask)
    return mask, changed


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.floats(0.05, 0.95))
def test_small_regions_are_gone_and_the_largest_island_stays(seed, height, width, least, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    expected, changed = mended_by_hand(mask, least)
    ours, ours_changed = without_small_regions(mask, least)
    assert np.array_equal(ours, expected)
    assert ours_changed == changed
    assert ours.any() or not mask.any()
