"""Views and masks: the same pixels on any number of workers, and the geometry that the papers prescribe."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vfm_ops.pretrain.tiny import build, samples, tokenizer
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.pretrain.augment import CropPlan, ViewPlan, colour_jitter, crop_box, make_views, one_crop, sample_rng
from vfm_ops.pretrain.masking import MaskPlan, blockwise_mask


def test_pixels_follow_from_seed_epoch_and_id_alone():
    plan = build("dinov2").view_plan(build("dinov2").config)
    one = make_views(plan, samples()[3], seed=1, epoch=2)
    make_views(plan, samples()[4], seed=1, epoch=2)  # another sample in between
    again = make_views(plan, samples()[3], seed=1, epoch=2)
    assert all(np.array_equal(one[key], again[key]) for key in one)
    for other in ((2, 2), (1, 3)):
        changed = make_views(plan, samples()[3], *other)
        assert not np.array_equal(one["global"], changed["global"])
    assert not np.array_equal(one["global"][0], one["global"][1])


def test_multi_crop_has_the_shapes_that_the_objective_declares():
    views = make_views(build("dinov2").view_plan(build("dinov2").config), samples()[0], 0, 0)
    assert {k: (v.shape, str(v.dtype)) for k, v in views.items()} == {
        "global": ((2, 16, 16, 3), "uint8"), "local": ((2, 8, 8, 3), "uint8"), "mask": ((2, 16), "bool"),
    }  # fmt: skip


def test_workers_that_augment_need_no_torch():
    code = "import sys, vfm_ops.pretrain.augment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.integers(8, 400), st.integers(8, 400), st.integers(0, 10**6))
def test_crops_keep_to_area_and_aspect(height, width, seed):
    rng = np.random.default_rng(seed)
    top, left, crop_h, crop_w = crop_box(height, width, (0.2, 0.6), (3 / 4, 4 / 3), rng)
    assert 0 <= top <= height - crop_h
    assert 0 <= left <= width - crop_w
    slack = (crop_h + crop_w + 1) / (height * width)  # rounding to whole pixels
    if max(height / width, width / height) < 1.5:  # else the fallback may apply
        assert 0.2 - slack <= crop_h * crop_w / (height * width) <= 0.6 + slack


def test_whole_image_plan_is_a_plain_resize():
    image = samples().images[0]
    whole = CropPlan(size=20, scale=None, flip_p=0.0)
    assert np.array_equal(
        one_crop(image[:, :18], CropPlan(size=18, scale=None, flip_p=0.0), 0, sample_rng(0, 0, 0))[:, :1].shape,
        (18, 1, 3),
    )
    square = np.ascontiguousarray(np.pad(image, ((0, 0), (0, 2), (0, 0))))
    assert np.array_equal(one_crop(square, whole, 0, sample_rng(0, 0, 0)), square)


def test_probabilities_belong_to_their_crop():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    plan = CropPlan(size=16, scale=None, flip_p=0.0, solarize_p=(0.0, 1.0))
    first, second = (one_crop(image, plan, i, sample_rng(0, 0, 0)) for i in range(2))
    assert np.array_equal(first, image)
    assert np.array_equal(second, np.where(image < 128, image, 255 - image))


def test_colour_jitter_scales_brightness_and_turns_hue():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = {int(colour_jitter(grey, (0.5, 0, 0, 0), np.random.default_rng(i))[0, 0, 0]) for i in range(200)}
    assert min(values) in range(49, 60)
    assert max(values) in range(140, 151)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    turned = [colour_jitter(red, (0, 0, 0, 0.5), np.random.default_rng(i))[0, 0] for i in range(20)]
    assert all(abs(int(t.max()) - 200) <= 2 for t in turned)
    assert any(t[0] < 100 for t in turned)


@given(st.integers(0, 10**6), st.integers(1, 195))
def test_blockwise_masks_hide_exactly_as_many_patches_as_asked(seed, count):
    assert blockwise_mask(np.random.default_rng(seed), (14, 14), count).sum() == count


def test_blockwise_masks_are_blocks():
    # A masked patch's right neighbour is masked far more often than chance, 75 of 196.
    masks = [blockwise_mask(np.random.default_rng(i), (14, 14), 75) for i in range(200)]
    neighbour = np.mean([m[:, 1:][m[:, :-1]].mean() for m in masks])
    assert neighbour > 0.7
    uniform = [MaskPlan(ratio=75 / 196).draw(np.random.default_rng(i)).reshape(14, 14) for i in range(200)]
    assert np.mean([m[:, 1:][m[:, :-1]].mean() for m in uniform]) < 0.45


def test_mask_plans_draw_the_papers_shares():
    rng = np.random.default_rng(0)
    assert MaskPlan(ratio=0.75).draw(rng).sum() == 147
    plan = MaskPlan(kind="ibot", views=2, min_block=4)
    masks = np.concatenate([plan.draw(rng) for _ in range(300)])
    shares = masks.mean(1)
    assert 0.42 < (shares > 0).mean() < 0.58
    assert shares[shares > 0].min() > 0.08
    assert shares.max() < 0.52
    assert shares[shares > 0].mean() == pytest.approx(0.3, abs=0.02)


def test_impossible_plans_and_images_are_named():
    with pytest.raises(UsageError, match="between 1 and 195"):
        MaskPlan(kind="blockwise", count=196)
    with pytest.raises(UsageError, match="masks all or none"):
        MaskPlan(ratio=0.001)
    with pytest.raises(UsageError, match="crop scale"):
        CropPlan(scale=(0.5, 0.2))
    with pytest.raises(MediaError, match="must be uint8"):
        make_views(ViewPlan((CropPlan(),)), {"id": "a", "image": np.zeros((4, 4, 3), np.float32)}, 0, 0)


def test_captions_are_framed_and_cut_but_keep_their_end():
    tokenize = tokenizer()
    short, long = tokenize("a red square", 8), tokenize("a red square " * 9, 8)
    assert short[0] == long[0] == 2
    assert long[-1] == 3
    assert list(short[short != 0])[-1] == 3
    assert math.prod(short.shape) == 8
    assert not np.array_equal(tokenize("a red square", 8), tokenize("a blue square", 8))
