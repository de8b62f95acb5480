"""Near-duplicate images: what a user would lose if copies were missed, or look-alikes thrown away."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.bench.planted import TRANSFORMS
from vfm_ops.curate.image_duplicates import image_duplicates, strongest_pairs
from vfm_ops.curate.neighbours import Pairs
from vfm_ops.curate.verify import COPY_SCORE, same_picture_score, small_picture
from vfm_ops.errors import UsageError


@pytest.fixture(scope="module")
def tiles(photographs) -> list[np.ndarray]:
    pictures = [cv2.imread(str(p), cv2.IMREAD_COLOR_RGB) for p in photographs[:12]]
    return [cv2.resize(p, (160, 160), interpolation=cv2.INTER_AREA) for p in pictures]


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_a_transformed_photograph_is_recognised(tiles, name):
    rng = np.random.default_rng(0)
    scores = [same_picture_score(small_picture(t), small_picture(TRANSFORMS[name](t, rng))) for t in tiles]
    assert np.mean(np.array(scores) >= COPY_SCORE) >= 0.8


def test_different_photographs_are_never_taken_for_one(tiles):
    small = [small_picture(t) for t in tiles]
    scores = [same_picture_score(a, b) for i, a in enumerate(small) for b in small[:i]]
    assert max(scores) < COPY_SCORE


@pytest.mark.parametrize(("angle", "expand"), [(30, False), (30, True), (-45, True), (100, True)])
def test_a_copy_turned_by_any_angle_is_recognised_whatever_fills_its_corners(photographs, angle, expand):
    """Of pictures as they are: most are not square, and a turn of a squeezed picture is no turn."""
    pictures = [Image.open(p).convert("RGB") for p in photographs[:6]]
    scores = [
        same_picture_score(
            small_picture(np.asarray(p)),
            small_picture(np.asarray(p.rotate(angle, Image.Resampling.BICUBIC, expand=expand))),
        )
        for p in pictures
    ]
    assert np.mean(np.array(scores) >= COPY_SCORE) >= 0.8


def test_another_colour_is_another_picture_however_well_it_aligns(photographs):
    coffee = np.asarray(Image.open(photographs[2]).convert("RGB"))
    other = np.ascontiguousarray(coffee[..., ::-1])
    assert same_picture_score(small_picture(coffee), small_picture(coffee[8:, 8:])) >= COPY_SCORE
    assert same_picture_score(small_picture(coffee), small_picture(other)) < COPY_SCORE


def test_candidates_by_vector_are_confirmed_by_picture(tiles):
    rng = np.random.default_rng(1)
    pictures = [*tiles[:4], TRANSFORMS["jpeg30"](tiles[2], rng)]
    # Vectors that call everything alike: only the pictures can tell.
    vectors_ND = np.ones((5, 8), np.float32) + 0.01 * rng.standard_normal((5, 8)).astype(np.float32)
    pairs = image_duplicates(pictures, vectors_ND)
    assert list(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)) == [(2, 4)]


def test_strongest_pairs_keep_what_either_end_ranks_high():
    pairs = Pairs(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 2]), np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    kept = strongest_pairs(pairs, 4, 1)
    assert list(zip(kept.i.tolist(), kept.j.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 3)]


def test_images_and_vectors_must_belong_together(tiles):
    with pytest.raises(UsageError, match="2 images but 3 vectors"):
        image_duplicates(tiles[:2], np.ones((3, 4), np.float32))
