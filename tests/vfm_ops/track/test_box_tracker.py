"""Boxes become tracks: ids through misses, crossings and weak detections, as the papers say and another library has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm_ops.errors import UsageError
from vfm_ops.track.appearance import crop_looks
from vfm_ops.track.associate import Observation
from vfm_ops.track.bytetrack import ByteTrack, ByteTrackSettings
from vfm_ops.track.kalman import CENTRE_AREA_RATIO, CORNERS, box_of_area, centre_area_ratio
from vfm_ops.track.ocsort import OCSort, OCSortSettings, between, directions

METHODS = [ByteTrack, OCSort]


def box(x: float, y: float = 50, side: float = 20) -> np.ndarray:
    return np.array([x, y, x + side, y + side], float)


def one(x: float, y: float = 50, score: float = 0.9, label: str = "a", looks=None) -> Observation:
    return Observation(box(x, y), label, score, None, looks)


def trajectories(seed: int, frames: int = 60, objects: int = 6) -> list[list[Observation]]:
    """Boxes that sway across one another, some not detected, some weak, and some that are nothing."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(0, 200, (objects, 2)), rng.uniform(-3, 3, (objects, 2))
    size, phase = rng.uniform(15, 40, (objects, 2)), rng.uniform(0, 6, objects)
    shown = []
    for t in range(frames):
        centres = start + speed * t + 15 * np.sin(0.2 * t + phase)[:, None]
        boxes = np.concatenate([centres - size / 2, centres + size / 2], 1) + rng.normal(0, 0.7, (objects, 4))
        kept = np.flatnonzero(rng.random(objects) > 0.12)
        found = [Observation(boxes[k], "a", float(rng.uniform(0.3, 1))) for k in kept]
        if rng.random() < 0.4:
            found.append(Observation(box(*rng.uniform(0, 200, 2)), "a", float(rng.uniform(0.1, 0.8))))
        shown.append(found)
    return shown


@pytest.mark.parametrize("kind", METHODS)
def test_an_id_is_kept_through_a_gap_and_ends_after_the_buffer(kind):
    tracker = kind(kind.Settings(lost_track_buffer=10, minimum_consecutive_frames=1))
    ids = [tracker.update([] if 20 <= t < 28 else [one(3 * t)]) for t in range(40)]
    assert {i for found in ids[2:] for i in found} == {1}
    again = [tracker.update([] if t < 60 else [one(3 * t)]) for t in range(40, 70)]
    assert {i for found in again[-5:] for i in found} == {2}


@pytest.mark.parametrize("kind", METHODS)
def test_two_that_pass_each_other_keep_their_ids(kind):
    tracker = kind()
    for t in range(50):
        ids = tracker.update([one(3 * t, 50), one(150 - 3 * t, 56)])
        if t > 3:
            assert ids == [1, 2]


def test_a_weak_detection_continues_a_track_and_starts_none():
    tracker = ByteTrack()
    assert [tracker.update([one(t), one(100 + t, score=0.3)]) for t in range(3)] == [[None, None], [1, None], [1, None]]
    assert tracker.update([one(3, score=0.2)]) == [1]
    strong_not_enough = ByteTrackSettings(track_activation_threshold=0.95)
    assert [ByteTrack(strong_not_enough).update([one(t)]) for t in range(3)] == [[None]] * 3
    ocsort = OCSort()
    assert [ocsort.update([one(t, score=s)]) for t, s in enumerate((0.9, 0.9, 0.3, 0.9))] == [[None], [1], [None], [1]]


def test_an_unconfirmed_track_ends_at_its_first_miss():
    tracker = ByteTrack()
    tracker.update([one(0)])
    tracker.update([])
    assert tracker.tracks == []


def test_ocsort_finds_an_object_where_it_was_last_seen():
    """It stops while it is out of sight: the filter has gone on, and its last box has not."""
    tracker = OCSort(OCSortSettings(minimum_consecutive_frames=1))
    for t in range(10):
        tracker.update([one(6 * t)])
    for _ in range(8):
        tracker.update([])
    assert tracker.filter.box(tracker.tracks[0].mean)[0] > 54 + 30
    assert tracker.update([one(56)]) == [1]
    # The filter was run again on the line between both sightings, 2 pixels in 9 frames: its speed of 6 is forgotten.
    assert tracker.tracks[0].mean[4] < (6 + 2 / 9) / 2


def test_momentum_prefers_the_detection_that_lies_ahead():
    """Two detections overlap the track alike, one ahead of it, one behind."""
    for weight, expected in ((0.2, 1), (0.0, None)):
        facts = {"minimum_consecutive_frames": 1, "delta_t": 1, "direction_consistency_weight": weight}
        tracker = OCSort(OCSortSettings(**facts))
        for t in range(12):
            tracker.update([one(4 * t)])
        (track,) = tracker.tracks
        place = tracker.filter.box(tracker.filter.predict(track.mean, track.covariance)[0])[0]
        assert tracker.update([one(place - 8), one(place + 8.05)])[1] == expected


def test_directions_and_lines_between_boxes():
    np.testing.assert_allclose(directions(box(0, 0), box(3, 4)), [0.8, 0.6], atol=1e-6)
    assert np.array_equal(directions(box(1), box(1)), [0, 0])
    assert [b[0] for b in between(box(0), box(9), 3)] == [3, 6, 9]


@pytest.mark.parametrize("kind", METHODS)
def test_labels_never_mix_and_no_id_crosses_a_cut(kind):
    tracker = kind()
    ids = [tracker.update([one(t, label="a"), one(t, label="b")]) for t in range(6)]
    assert sorted(ids[-1]) == [1, 2]
    tracker.cut()
    assert [tracker.update([one(t, label="a")]) for t in range(6, 12)][-1] == [3]


@pytest.mark.parametrize("kind", METHODS)
def test_looks_bring_back_what_returns_elsewhere_and_part_what_overlaps(kind):
    red, blue = np.array([1.0, 0]), np.array([0, 1.0])
    tracker = kind(kind.Settings(minimum_consecutive_frames=1))
    for t in range(6):
        tracker.update([one(t, looks=red)])
    for _ in range(5):
        tracker.update([])
    ids = [tracker.update([one(300 + t, looks=red)]) for t in range(2)]
    assert ids[0] == ids[1] == [1]
    others = [tracker.update([one(302 + t, looks=blue)]) for t in range(3)]
    assert others[-1] == [2]


def test_crops_are_cut_at_the_border_and_empty_ones_are_unknown():
    rgb = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    shapes = []

    def embed(crops):
        shapes.extend(crop.shape for crop in crops)
        return np.stack([np.array([1.0, 0])] * len(crops))

    boxes = np.array([[-5, -5, 5, 5], [35.5, 10, 60, 20], [50, 10, 60, 20], [3, 3, 3, 9]], float)
    looks = crop_looks(embed, rgb, boxes)
    assert [v is None for v in looks] == [False, False, True, True]
    assert shapes == [(5, 5, 3), (10, 5, 3)]
    assert crop_looks(embed, rgb, boxes[2:]) == [None, None]


@pytest.mark.parametrize("kind", METHODS)
@given(seed=st.integers(0, 10**6), at=st.integers(1, 39))
@settings(max_examples=15)
def test_a_saved_tracker_goes_on_as_if_it_had_not_been_saved(kind, seed, at):
    shown = trajectories(seed, 40)
    whole, first = kind(), kind()
    expected = [whole.update(found) for found in shown]
    ids = [first.update(found) for found in shown[:at]]
    second = kind.from_state(json.loads(json.dumps(first.state())))
    assert ids + [second.update(found) for found in shown[at:]] == expected
    assert json.dumps(second.state()) == json.dumps(whole.state())


@pytest.mark.parametrize("kind", METHODS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_no_id_is_on_a_frame_twice_and_the_order_of_detections_does_not_count(kind, seed):
    shown = trajectories(seed, 40)
    one_way, other_way = kind(), kind()
    names: dict[int, int] = {}
    for found in shown:
        ids = one_way.update(found)
        assert len({i for i in ids if i}) == len([i for i in ids if i])
        for a, b in zip(ids, reversed(other_way.update(found[::-1])), strict=True):
            assert (a is None) == (b is None)
            assert a is None or names.setdefault(a, b) == b


@pytest.mark.parametrize("motion", [CORNERS, CENTRE_AREA_RATIO])
def test_the_filter_is_the_textbooks(motion):
    """Against the least-squares estimate over all frames at once, which a Kalman filter computes one frame at a time."""
    mean, covariance = motion.begin(box(10, 20, 30))
    size = len(mean)
    transition = np.eye(size) + np.eye(size, k=4)
    steps = [box(12, 21, 31), box(15, 21, 33), box(16, 23, 32)]
    states, precision = size * (len(steps) + 1), np.zeros((0, 0))
    precision, information = np.zeros((states, states)), np.zeros(states)

    def believe(rows: np.ndarray, value: np.ndarray, noise) -> None:
        weight = np.diag(1 / np.asarray(noise, float))
        precision[:] += rows.T @ weight @ rows
        information[:] += rows.T @ weight @ value

    def at(t: int, part: np.ndarray) -> np.ndarray:
        return np.pad(part, ((0, 0), (t * size, states - part.shape[1] - t * size)))

    believe(at(0, np.eye(size)), mean, motion.start)
    for t, seen in enumerate(steps, 1):
        believe(at(t, np.eye(size)) - at(t - 1, transition), np.zeros(size), motion.process)
        believe(at(t, np.eye(4, size)), motion.measure(seen), motion.measurement)
        mean, covariance = motion.correct(*motion.predict(mean, covariance), seen)
    np.testing.assert_allclose(mean, np.linalg.solve(precision, information)[-size:], rtol=1e-6, atol=1e-6)
    expected = np.linalg.inv(precision)[-size:, -size:]
    np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-6)


def test_boxes_by_area_and_ratio_and_back():
    np.testing.assert_allclose(box_of_area(centre_area_ratio(np.array([1.0, 2, 11, 42]))), [1, 2, 11, 42], atol=1e-5)
    assert np.array_equal(box_of_area(np.array([3.0, 4, 0, 1])), [3, 4, 3, 4])
    mean, covariance = CENTRE_AREA_RATIO.begin(box(0))
    mean[6] = -1000.0
    shrunk, _ = CENTRE_AREA_RATIO.predict(mean, covariance)
    assert shrunk[2] == 400


@pytest.mark.parametrize("bad", [[0, 0, np.nan, 5], [5, 0, 0, 5], [0, 0, 1]])
def test_a_box_that_is_none_is_refused(bad):
    with pytest.raises(UsageError, match="a detection's box is"):
        ByteTrack().update([Observation(np.array(bad, float))])


def test_settings_and_states_that_do_not_fit_are_refused():
    for kind, wrong in (
        (ByteTrackSettings, {"minimum_iou_threshold": 1.5}),
        (ByteTrackSettings, {"track_activation_threshold": -1}),
        (ByteTrackSettings, {"lost_track_buffer": -1}),
        (OCSortSettings, {"delta_t": 0}),
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            kind(**wrong)
    with pytest.raises(UsageError, match="one of bytetrack, not of ocsort"):
        OCSort.from_state(ByteTrack().state())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", METHODS)
def test_ids_are_those_of_the_package_trackers(kind, seed):
    how = "needs trackers: pip install --no-deps trackers supervision pydeprecate defusedxml"
    supervision = pytest.importorskip("supervision", reason=how)
    theirs = pytest.importorskip("trackers", reason=how)
    oracle = {"bytetrack": theirs.ByteTrackTracker, "ocsort": theirs.OCSORTTracker}[kind.method]
    facts = {"lost_track_buffer": 12, "high_conf_det_threshold": 0.5}
    ours, other = kind(kind.Settings(**facts)), oracle(**facts)
    names: dict[int, int] = {}
    confirmed = 0
    for found in trajectories(seed):
        ids = ours.update(found)
        seen = supervision.Detections(
            xyxy=np.array([o.box for o in found]).reshape(-1, 4),
            confidence=np.array([o.score for o in found]),
            data={"number": np.arange(len(found))},
        )
        answer = other.update(seen)
        numbers = dict(zip(answer.data.get("number", []), answer.tracker_id, strict=False))
        for i, track_id in enumerate(ids):
            theirs_id = int(numbers[i])
            assert (track_id is None) == (theirs_id < 0)
            if track_id is not None:
                confirmed += 1
                assert names.setdefault(track_id, theirs_id) == theirs_id
    assert confirmed > 50
    assert len(set(names.values())) == len(names)
