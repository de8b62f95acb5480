"""If these fail, the world's ground truth is wrong, and everything trained or measured on it with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vfm_ops.errors import UsageError
from vfm_ops.world.backgrounds import photographs
from vfm_ops.world.captions import caption, relation
from vfm_ops.world.scene import Scene, Thing, World, composite, image, visible_boxes
from vfm_ops.world.shapes import Fill, Pose, coverage, outline
from vfm_ops.world.vocabulary import COLOURS, SHAPES, Kind, held_out_kinds


def _thing(kind: Kind, pose: Pose) -> Thing:
    return Thing(kind, Fill(), pose, outline(kind.shape))


def test_item_is_a_function_of_seed_and_index():
    a, b = image(World(seed=3), 5), image(World(seed=3), 5)
    assert np.array_equal(a.rgb, b.rgb)
    assert np.array_equal(a.ids, b.ids)
    assert not np.array_equal(a.rgb, image(World(seed=4), 5).rgb)
    assert not np.array_equal(a.rgb, image(World(seed=3), 6).rgb)


def test_circle_covers_its_area_where_it_was_put():
    alpha, (top, left) = coverage(outline("circle"), Pose(40.0, 30.0, 20.0), 64, 96)
    weight = alpha / 255
    ys, xs = np.mgrid[top : top + alpha.shape[0], left : left + alpha.shape[1]] + 0.5
    assert weight.sum() == pytest.approx(np.pi * 18**2, rel=0.02)
    assert (weight * xs).sum() / weight.sum() == pytest.approx(40, abs=0.15)
    assert (weight * ys).sum() / weight.sum() == pytest.approx(30, abs=0.15)


def test_ring_has_a_hole():
    alpha, (top, left) = coverage(outline("ring"), Pose(32, 32, 20), 64, 64)
    assert alpha[32 - top, 32 - left] == 0
    assert alpha[32 - top, 32 - left + 15] == 255


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_stays_inside_its_disc(shape: str):
    alpha, (top, left) = coverage(outline(shape), Pose(64, 64, 40, angle=0.7), 128, 128)
    ys, xs = np.nonzero(alpha > 127)
    assert np.hypot(xs + left + 0.5 - 64, ys + top + 0.5 - 64).max() <= 40 * 1.3
    assert (alpha > 127).sum() > 0.15 * np.pi * 40**2


def test_pose_round_trips():
    pose = Pose(10, 20, 7, angle=1.1, aspect=1.4)
    points = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(pose.unplace(pose.place(points)), points, atol=1e-12)


def test_later_thing_hides_the_earlier_one_and_boxes_follow():
    square, circle = Kind("red", "plain", "square"), Kind("blue", "plain", "circle")
    scene = composite(
        np.zeros((64, 64, 3), np.uint8), [_thing(square, Pose(32, 32, 20)), _thing(circle, Pose(44, 32, 16))]
    )
    assert scene.ids[32, 44] == 2
    assert scene.ids[32, 20] == 1
    assert tuple(scene.rgb[32, 44]) == COLOURS["blue"]
    assert scene.boxes_N4[0, 2] < 44 + 16
    np.testing.assert_array_equal(scene.boxes_N4, visible_boxes(scene.ids, 2))
    hidden = composite(
        np.zeros((64, 64, 3), np.uint8), [_thing(circle, Pose(32, 32, 8)), _thing(square, Pose(32, 32, 30))]
    )
    assert not hidden.mask(0).any()
    assert not hidden.boxes_N4[0].any()


def test_masks_and_boxes_agree_on_generated_scenes():
    for i in range(10):
        scene = image(World(seed=1, objects=(2, 6)), i)
        for k in range(len(scene.things)):
            ys, xs = np.nonzero(scene.mask(k))
            if len(xs):
                assert tuple(scene.boxes_N4[k]) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_held_out_split_shows_only_held_out_kinds_and_photographs():
    world = World(split="heldout", objects=(3, 6))
    shown = {t.kind for i in range(20) for t in image(world, i).things}
    assert shown <= set(held_out_kinds())
    trained = {t.kind for i in range(20) for t in image(replace(world, split="train"), i).things}
    assert not trained & set(held_out_kinds())
    assert not set(photographs("train")) & set(photographs("heldout"))


def test_world_without_photographs_still_has_backgrounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vfm_ops.world.backgrounds.photographs", lambda split: ())
    assert image(World(photographic=1.0, cutouts=1.0), 0).rgb.shape == (128, 128, 3)


def test_caption_names_things_and_their_relation():
    red, blue = Kind("red", "striped", "ring"), Kind("blue", "plain", "square")
    things = [_thing(red, Pose(20, 50, 8)), _thing(blue, Pose(70, 55, 20))]
    scene = Scene(np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8), things)
    assert caption(scene) == "a small red striped ring left of a blue square"
    assert relation(Pose(50, 10, 5), Pose(50, 60, 5)) == "above"
    assert relation(Pose(50, 60, 5), Pose(50, 10, 5)) == "below"


def test_wrong_settings_say_what_is_right():
    with pytest.raises(UsageError, match="train, heldout"):
        World(split="test")
    with pytest.raises(UsageError, match="smaller first"):
        World(objects=(3, 1))
