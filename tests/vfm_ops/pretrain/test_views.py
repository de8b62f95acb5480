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
from vfm_ops.pretrain.augment import (
    CropPlan,
    ViewPlan,
    colour_jitter,
    crop_box,
    make_views,
    one_crop,
    resize,
    sample_rng,
    scale_brightness,
    scale_contrast,
    scale_saturation,
    shift_hue,
)
from vfm_ops.pretrain.masking import MaskPlan, blockwise_mask
from vfm_ops.pretrain.rand_augment import erase, rand_augment


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


def picture(height: int = 90, width: int = 120, channels: int = 3) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + c)) * np.cos(columns / (5 - c)) for c in range(channels)]
    return (np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)


@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (200, 3), (40, 1), (40, 4)])
def test_crops_are_resized_as_the_authors_loaders_do(filter_, size, channels):
    """Pillow's antialiased filter on the cut box, within two levels (large crops are reduced by a whole factor first)."""
    from PIL import Image

    image = picture(channels=channels)
    got = resize(image, size, filter_).astype(int)
    method = getattr(Image.Resampling, filter_.upper())
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel])).resize((size, size), method)
        assert np.abs(got[..., channel] - np.asarray(plane, int)).mean() < 0.7
        assert np.abs(got[..., channel] - np.asarray(plane, int)).max() <= 6
    if size == 16:
        assert np.abs(got - resize(image, size, "area")).max() > 6, "the fast filter is another"


def test_colour_operations_are_torchvisions():
    from PIL import Image
    from torchvision.transforms import functional as theirs

    image = picture()
    pil = Image.fromarray(image)
    for factor in (0.2, 0.7, 1.0, 1.6):
        for ours, other in (
            (scale_brightness, theirs.adjust_brightness),
            (scale_contrast, theirs.adjust_contrast),
            (scale_saturation, theirs.adjust_saturation),
        ):
            assert np.abs(ours(image, factor).astype(int) - np.asarray(other(pil, factor), int)).max() <= 2
    for turns in (-0.1, 0.0, 0.25):
        difference = shift_hue(image, turns).astype(int) - np.asarray(theirs.adjust_hue(pil, turns), int)
        assert np.abs(difference).mean() < 3  # hues of 256 levels, rounded otherwise


def test_colour_jitter_draws_every_factor_in_its_range_and_every_order():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = {int(colour_jitter(grey, (0.5, 0, 0, 0), np.random.default_rng(i))[0, 0, 0]) for i in range(200)}
    assert min(values) in range(49, 60)
    assert max(values) in range(140, 151)
    bright = np.full((4, 4, 3), 200, np.uint8)
    bright[:2] = 40
    # Brightness clips before contrast or after it: with both strong, both orders must occur.
    ends = {tuple(colour_jitter(bright, (0.8, 0.8, 0, 0), np.random.default_rng(i))[[0, 3], 0, 0]) for i in range(50)}
    assert len(ends) > 25


def test_rand_augment_has_timms_operations_at_timms_strengths():
    """Each operation at fixed magnitudes, both signs, against timm's own."""
    from PIL import Image
    from timm.data import auto_augment as theirs

    from vfm_ops.pretrain import rand_augment as ours

    assert list(ours.OPERATIONS) == theirs._RAND_INCREASING_TRANSFORMS
    pil = Image.fromarray(picture())
    for name, make in ours.OPERATIONS.items():
        for magnitude in (3.0, 9.0):
            mine = {np.asarray(make(pil, magnitude / 10, np.random.default_rng(i))).tobytes() for i in range(24)}
            operation = theirs.AugmentOp(name, 1.0, magnitude, {"img_mean": (124, 116, 104)})
            other = {np.asarray(operation(pil)).tobytes() for _ in range(48)}
            assert mine == other, (name, magnitude)


def test_rand_augment_and_erasing_keep_form_and_change_a_share():
    rng = np.random.default_rng(0)
    image = picture(32, 32)
    changed = [not np.array_equal(rand_augment(image, 9.0, rng), image) for _ in range(300)]
    assert 0.65 < np.mean(changed) < 0.78  # two draws of one half, some of which change nothing
    assert rand_augment(picture(16, 16, 1), 9.0, rng).shape == (16, 16, 1)
    areas = [np.mean(np.any(erase(image, rng) != image, axis=-1)) for _ in range(200)]
    assert min(areas) > 0.005
    assert max(areas) < 0.36
    plan = CropPlan(size=32, scale=None, flip_p=0.0, erase_p=1.0)
    assert not np.array_equal(one_crop(image, plan, 0, sample_rng(0, 0, 0)), image)


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
