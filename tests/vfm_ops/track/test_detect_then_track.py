"""From frames to rows of tracks: with perfect masks in SAM 2's place for the logic, with the real network for resuming."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.bench.quokka import scene
from vfm_ops.errors import UsageError
from vfm_ops.track import detect_then_track
from vfm_ops.track.associate import AssociationSettings
from vfm_ops.track.detect_then_track import DetectThenTrack, DetectTrackSettings
from vfm_ops.track.frames import FrameMasks
from vfm_ops.track.masks import box_iou, decode_rle, mask_box


class Truth:
    """What is to be seen on the frame at hand: several objects' masks; it serves detector and perfect tracker alike."""

    def __init__(self, masks: list[list[np.ndarray]]) -> None:
        self.masks, self.t, self.seen = masks, -1, 0

    def detect(self, images, prompts):
        self.seen += 1
        boxes = [mask_box(m) for m in self.masks[self.t] if m.sum() >= 100]
        n = len(boxes)
        return [
            SimpleNamespace(boxes=np.array(boxes).reshape(n, 4), scores=np.full(n, 0.9), prompt_index=np.zeros(n, int))
        ]


def perfect_tracker(truth: Truth):
    """Stands in for `Sam2Tracker`: an object is whatever its prompt's box overlapped most, and its mask is the truth."""

    class PerfectTracker:
        def __init__(self, *_args) -> None:
            self.objects: dict[int, int] = {}
            self.state = SimpleNamespace(size=None)

        @property
        def object_ids(self) -> list[int]:
            return list(self.objects)

        def _look(self, chosen: dict[int, int | None]) -> FrameMasks:
            masks = [np.zeros((96, 128), bool) if k is None else truth.masks[truth.t][k] for k in chosen.values()]
            logits = torch.from_numpy(np.array(masks, np.float32).reshape(-1, 96, 128)) * 20 - 10
            shown = torch.tensor([10.0 if m.any() else -10.0 for m in masks])
            return FrameMasks(truth.t, list(chosen), logits, shown, torch.ones(len(masks)), (96, 128))

        def _choose(self, prompts) -> dict[int, int | None]:
            boxes = np.stack([mask_box(m) for m in truth.masks[truth.t]])
            overlaps = {p.object_id: box_iou(np.asarray(p.box)[None], boxes)[0] for p in prompts}
            return {i: int(o.argmax()) if o.max() > 0 else None for i, o in overlaps.items()}

        def track(self, rgb, frame_index) -> FrameMasks:
            truth.t += 1
            self.state.size = rgb.shape[:2]
            return self._look(dict(self.objects))

        def preview(self, prompts) -> FrameMasks:
            return self._look(self._choose(prompts))

        def prompt(self, prompts) -> FrameMasks:
            chosen = self._choose(prompts)
            self.objects |= chosen
            return self._look(chosen)

        def remove(self, object_id: int) -> None:
            del self.objects[object_id]

    return PerfectTracker


@pytest.fixture
def run(monkeypatch):
    """run(frames, masks, cuts=(), **settings) -> FrameResult of every frame, with perfect masks."""

    def run(frames, masks, cuts=(), **settings):
        truth = Truth(masks)
        monkeypatch.setattr(detect_then_track, "Sam2Tracker", perfect_tracker(truth))
        op = DetectThenTrack(truth, None, ["quokka"], DetectTrackSettings(**settings))
        return [op.step(10 * t, t / 2, frame, t in cuts) for t, frame in enumerate(frames)]

    return run


def rows_of(results) -> list:
    return [row for result in results for row in result.tracks]


def test_rows_are_the_objects_masks_with_one_id_through_an_occlusion(run, frames):
    shown = scene(frames[:60], [-10 + 2 * t for t in range(60)], hidden=range(25, 35))
    results = run(shown.frames, [[m] for m in shown.masks], detect_every=5)
    assert [t for t, r in enumerate(results) if r.is_key] == list(range(0, 60, 5))
    for t, result in enumerate(results):
        (row,) = result.tracks
        assert (row.track_id, row.frame_index, row.pts_s, row.label) == (1, 10 * t, t / 2, "quokka")
        assert row.visible == (t not in range(25, 35))
        if row.visible:
            assert np.array_equal(decode_rle(row.mask), shown.masks[t])
            assert row.box.tolist() == mask_box(shown.masks[t]).tolist()
        else:
            assert row.mask is None
            assert row.score == 0


def test_a_track_that_left_and_came_back_has_its_id_and_no_rows_in_between(run, frames):
    lefts = [90 + 4 * t for t in range(15)] + [200] * 40 + [-30 + 3 * t for t in range(25)]
    shown = scene(frames[: len(lefts)], lefts)
    patience = AssociationSettings(patience=8)
    results = run(shown.frames, [[m] for m in shown.masks], detect_every=4, association=patience)
    rows = rows_of(results)
    assert {row.track_id for row in rows} == {1}
    assert not [row for row in rows if 25 <= row.frame_index // 10 < 55]
    assert [row for row in rows if row.frame_index // 10 > 65]


def test_no_track_goes_on_across_a_cut_and_the_detector_runs_at_once(run, frames):
    shown = scene(frames[:20], [40] * 20)
    results = run(shown.frames, [[m] for m in shown.masks], cuts={7}, detect_every=10)
    ids = [{row.track_id for row in r.tracks} for r in results]
    assert set.union(*ids[:7]) == {1}
    assert set.union(*ids[7:]) == {2}
    assert [t for t, r in enumerate(results) if r.is_key] == [0, 7, 17]


def test_two_objects_keep_their_ids_when_they_pass_each_other(run, frames):
    one = scene(frames[:40], [2 * t for t in range(40)], top=5)
    two = scene(frames[:40], [80 - 2 * t for t in range(40)], top=50)
    results = run(one.frames, [list(pair) for pair in zip(one.masks, two.masks)], detect_every=3)
    for t, result in enumerate(results):
        masks = {row.track_id: decode_rle(row.mask) for row in result.tracks}
        assert np.array_equal(masks[1], one.masks[t])
        assert np.array_equal(masks[2], two.masks[t])


def test_an_object_that_comes_in_later_gets_a_track_at_the_next_key_frame(run, frames):
    shown = scene(frames[:30], [150] * 12 + [40] * 18)
    results = run(shown.frames, [[m] for m in shown.masks], detect_every=5)
    assert min(row.frame_index for row in rows_of(results)) == 150
    assert len({row.track_id for row in rows_of(results)}) == 1


def test_zero_detections_give_no_rows(run, frames):
    nothing = np.zeros((96, 128), bool)
    results = run(frames[:8], [[nothing]] * 8, detect_every=2)
    assert rows_of(results) == []
    assert [r.detections for r in results] == [[]] * 8


def test_more_objects_than_the_limit_keep_the_best_and_report_the_rest(run, frames):
    masks = []
    for k in range(12):
        mask = np.zeros((96, 128), bool)
        y, x = divmod(k, 4)
        mask[30 * y : 30 * y + 12, 30 * x : 30 * x + 12] = True
        masks.append(mask)
    results = run(frames[:6], [masks] * 6, detect_every=2, max_tracks=5)
    assert all(len(r.tracks) == 5 for r in results)
    assert len({row.track_id for row in rows_of(results)}) == 5


def test_unconfirmed_tracks_have_no_rows(run, frames):
    shown = scene(frames[:12], [40] * 12)
    masks = [[m if t < 5 else np.zeros_like(m)] for t, m in enumerate(shown.masks)]
    twice = AssociationSettings(confirm_after=2)
    assert rows_of(run(shown.frames, masks, detect_every=10, association=twice)) == []
    steady = run(shown.frames, [[m] for m in shown.masks], detect_every=4, association=twice)
    assert min(row.frame_index for row in rows_of(steady)) == 40


def test_a_state_saved_at_a_chunk_edge_goes_on_to_the_same_rows(network, frames):
    """With the real network: nine frames on end, against four, bytes, five."""
    shown = scene(frames[:9], [20 + 3 * t for t in range(9)])

    def detector():
        return SimpleNamespace(
            detect=lambda images, _: [
                SimpleNamespace(
                    boxes=np.array([[20, 20, 60, 80], [70.0, 10, 120, 60]]), scores=[0.9, 0.8], prompt_index=[0, 1]
                )
            ]
        )

    settings = DetectTrackSettings(detect_every=3, min_area=1)
    whole = DetectThenTrack(detector(), network, ["quokka", "person"], settings)
    expected = [whole.step(t, t / 10, f) for t, f in enumerate(shown.frames)]
    assert rows_of(expected)
    first = DetectThenTrack(detector(), network, ["quokka", "person"], settings)
    got = [first.step(t, t / 10, shown.frames[t]) for t in range(4)]
    second = DetectThenTrack.from_bytes(detector(), network, first.to_bytes())
    got += [second.step(t, t / 10, shown.frames[t]) for t in range(4, 9)]
    assert repr(got) == repr(expected)
    assert second.to_bytes() == whole.to_bytes()


def test_a_picture_that_changes_shape_starts_anew(network, frames):
    detector = SimpleNamespace(
        detect=lambda images, _: [SimpleNamespace(boxes=np.array([[20.0, 20, 60, 60]]), scores=[0.9], prompt_index=[0])]
    )
    op = DetectThenTrack(detector, network, ["quokka"], DetectTrackSettings(min_area=1))
    before = op.step(0, 0.0, frames[0])
    after = op.step(1, 0.1, np.ascontiguousarray(frames[1][:, :96]))
    assert after.is_key
    assert not {r.track_id for r in before.tracks} & {r.track_id for r in after.tracks}


def test_an_empty_prompt_is_refused(network):
    with pytest.raises(UsageError, match="empty"):
        DetectThenTrack(SimpleNamespace(), network, ["person", " "])
