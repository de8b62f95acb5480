"""Layers of crops: that they cover the picture, by how much they overlap, and which masks were cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfm_ops.segment.crops import Crop, crop_layers


def test_a_layer_of_crops_is_that_of_sam():
    # 512 / 1500 of the shorter side, 300: 102 pixels; (400 + 102) / 2 and (300 + 102) / 2.
    whole, *crops = crop_layers((300, 400), 1, 512 / 1500)
    assert whole == Crop(0, (0, 0, 400, 300))
    assert [c.box for c in crops] == [
        (0, 0, 251, 201),
        (0, 99, 251, 300),
        (149, 0, 400, 201),
        (149, 99, 400, 300),
    ]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3), st.floats(0, 0.99))
def test_each_layer_covers_the_picture(height, width, layers, ratio):
    crops = crop_layers((height, width), layers, ratio)
    for layer in range(layers + 1):
        seen = np.zeros((height, width), int)
        for crop in crops:
            if crop.layer == layer:
                assert min(crop.size) > 0
                assert crop.of(seen).shape == crop.size
                crop.of(seen)[:] += 1
        assert seen.min() >= 1


@pytest.mark.parametrize(
    ("box", "is_cut"),
    [
        ((30, 30, 100, 100), False),
        ((30, 30, 180, 100), True),  # 20 pixels from the right cut
        ((30, 30, 179, 100), False),
        ((0, 0, 100, 100), False),  # at the picture's own edges
        ((30, 30, 100, 199), True),
    ],
)
def test_a_mask_that_ends_at_a_cut_is_cut_off(box, is_cut):
    assert Crop(1, (0, 0, 200, 200)).cuts(box, (400, 400)) is is_cut
    assert not Crop(0, (0, 0, 200, 200)).cuts(box, (200, 200))


def test_edges_are_those_of_the_picture_not_of_the_crop():
    right = Crop(1, (200, 100, 400, 300))
    assert right.cuts((0, 50, 100, 100), (300, 400))
    assert not right.cuts((50, 50, 199, 199), (300, 400))
