"""Ids through occlusion, exit and return, and never through a cut."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench.quokka import scene
from vfm_ops.errors import UsageError
from vfm_ops.track.appearance import colour_histogram
from vfm_ops.track.associate import AssociationSettings, Observation, TrackAssociator
from vfm_ops.track.masks import box_iou, decode_rle, encode_rle, mask_box, moved_rle, rle_iou


def seen(frame: np.ndarray, mask: np.ndarray, label: str = "quokka") -> Observation:
    box = mask_box(mask)
    return Observation(box, label, 0.9, encode_rle(mask), colour_histogram(frame, box, mask))


def follow(associator: TrackAssociator, shown, order=None) -> dict[int, int]:
    """Feeds a scene's perfect masks; the id of the quokka on each frame where it shows."""
    ids = {}
    for t in order or range(len(shown.frames)):
        # A sliver at the border has no looks to speak of; no detector would report it.
        observations = [seen(shown.frames[t], shown.masks[t])] if shown.masks[t].sum() >= 100 else []
        found = associator.update(t, observations)
        if found:
            ids[t] = found[0]
    return ids


def test_id_is_kept_through_a_ten_frame_occlusion(frames):
    shown = scene(frames[:60], [-10 + 2 * t for t in range(60)], hidden=range(25, 35))
    ids = follow(TrackAssociator(), shown)
    assert set(range(60)) - set(ids) == set(range(25, 35))
    assert len(set(ids.values())) == 1


def test_while_occluded_the_track_lives_and_is_not_visible(frames):
    shown = scene(frames[:40], [2 * t for t in range(40)], hidden=range(25, 35))
    associator = TrackAssociator()
    for t in range(30):
        follow(associator, shown, [t])
    (track,) = associator.tracks.values()
    assert (track.status, track.visible, track.seen) == ("occluded", False, 24)
    expected = mask_box(scene(frames[:40], [2 * t for t in range(40)]).masks[29])
    assert box_iou(track.place_at(29)[None], expected[None])[0, 0] > 0.9


def test_an_object_that_leaves_and_returns_elsewhere_is_the_same_by_its_looks(frames):
    out = [90 + 4 * t for t in range(15)] + [200] * 40 + [-30 + 3 * t for t in range(20)]
    shown = scene(frames[: len(out)], out)
    ids = follow(TrackAssociator(AssociationSettings(patience=10)), shown)
    assert max(ids) > 60
    assert len(set(ids.values())) == 1


def test_something_else_that_comes_in_later_is_not_the_one_that_left(frames):
    out = [90 + 4 * t for t in range(15)] + [200] * 20
    shown = scene(frames[: len(out)], out)
    associator = TrackAssociator(AssociationSettings(patience=10))
    quokka = follow(associator, shown)
    stranger = np.zeros((96, 128), bool)
    stranger[10:50, 5:25] = True
    other = associator.update(len(out), [seen(frames[0] // 4, stranger)])
    assert other[0] not in quokka.values()


def test_no_id_crosses_a_shot_cut(frames):
    shown = scene(frames[:20], [40] * 20)
    associator = TrackAssociator()
    before = follow(associator, shown, range(10))
    associator.cut()
    after = follow(associator, shown, range(10, 20))
    assert not set(before.values()) & set(after.values())


def test_a_single_false_alarm_makes_no_track_when_confirmation_is_asked_for(frames):
    shown = scene(frames[:10], [40] * 10)
    associator = TrackAssociator(AssociationSettings(confirm_after=3))
    noise = Observation(np.array([2.0, 2.0, 12.0, 12.0]), "quokka")
    for t in range(10):
        extra = [noise] if t == 1 else []
        associator.update(t, [seen(shown.frames[t], shown.masks[t]), *extra])
        assert all(track.status == "tentative" for track in associator.tracks.values()) == (t < 2)
    assert len(associator.tracks) == 1


def test_a_forgotten_track_costs_no_memory(frames):
    associator = TrackAssociator(AssociationSettings(patience=5, memory=20))
    rng = np.random.default_rng(0)
    for t in range(500):
        x, y = rng.uniform(0, 1000, 2)
        associator.update(t, [Observation(np.array([x, y, x + 5, y + 5]), looks=rng.normal(size=8))])
    assert len(associator.tracks) <= 22


def test_labels_are_never_mixed():
    associator = TrackAssociator()
    box = np.array([10.0, 10.0, 50.0, 50.0])
    (person,) = associator.update(0, [Observation(box, "person")])
    (dog,) = associator.update(1, [Observation(box, "dog")])
    assert person != dog


def test_masks_tell_apart_what_boxes_cannot():
    """Two diagonal halves of one square: their boxes are the same."""
    lower = np.tril(np.ones((40, 40), bool))
    upper = ~lower
    associator = TrackAssociator(AssociationSettings(min_iou=0.5))
    box = np.array([0.0, 0.0, 40.0, 40.0])
    first = associator.update(0, [Observation(box, mask=encode_rle(m)) for m in (lower, upper)])
    second = associator.update(1, [Observation(box, mask=encode_rle(m)) for m in (upper, lower)])
    assert second == first[::-1]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 80), st.floats(0, 80)), min_size=1, max_size=5), st.randoms(use_true_random=False)
)
def test_the_assignment_is_the_best_of_all(corners, random):
    """Against trying every one-to-one pairing: no other has a larger summed overlap with as many pairs."""
    boxes = [np.array([x, y, x + 30, y + 30]) for x, y in corners]
    shifted = [b + np.array([random.uniform(-12, 12)] * 4) for b in boxes]
    random.shuffle(shifted)
    associator = TrackAssociator(AssociationSettings(min_iou=0.2))
    before = associator.update(0, [Observation(b) for b in boxes])
    after = associator.update(1, [Observation(b) for b in shifted])
    overlap = box_iou(np.stack(shifted), np.stack(boxes))

    def value(pairs):
        good = [overlap[i, j] for i, j in pairs if overlap[i, j] >= 0.2]
        return len(good) + sum(good)

    ours = value([(i, before.index(t)) for i, t in enumerate(after) if t in before])
    best = max(value(list(enumerate(p))) for p in itertools.permutations(range(len(boxes))))
    assert ours == pytest.approx(best)


def test_state_goes_through_json_and_on_with_the_same_ids(frames):
    shown = scene(frames[:60], [-10 + 2 * t for t in range(60)], hidden=range(25, 35))
    whole = follow(TrackAssociator(), shown)
    first = TrackAssociator()
    follow(first, shown, range(30))
    second = TrackAssociator.from_state(json.loads(json.dumps(first.state())))
    assert follow(second, shown, range(30, 60)) == {t: i for t, i in whole.items() if t >= 30}


def test_settings_out_of_range_are_named():
    with pytest.raises(UsageError, match="min_iou"):
        AssociationSettings(min_iou=1.5)
    with pytest.raises(UsageError, match="patience"):
        AssociationSettings(patience=10, memory=5)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_run_lengths_keep_every_pixel(height, width, seed):
    a, b = np.random.default_rng(seed).random((2, height, width)) > 0.5
    assert np.array_equal(decode_rle(encode_rle(a)), a)
    union = (a | b).sum()
    x, y = width // 3, -(height // 2)
    inside = [[0 <= r - y < height and 0 <= c - x < width for c in range(width)] for r in range(height)]
    expected = [[inside[r][c] and bool(a[r - y, c - x]) for c in range(width)] for r in range(height)]
    assert np.array_equal(decode_rle(moved_rle(encode_rle(a), x, y)), expected)
    assert rle_iou([encode_rle(a)], [encode_rle(b)])[0, 0] == pytest.approx((a & b).sum() / union if union else 0)
