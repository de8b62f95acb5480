"""What a session does by itself: what is tracked again, what a correction leaves behind, and what it says to bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.vfm_ops.track.conftest import tiny_model
from vfm_ops.errors import UsageError
from vfm_ops.track.frames import FrameMasks
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.prompt_file import read_calls, run_calls
from vfm_ops.track.regions import mend_masks, small_regions
from vfm_ops.track.session import VideoSession
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

BOX = [70.0, 10.0, 120.0, 60.0]


@pytest.fixture(scope="module")
def lively():
    """Random weights by which most prompts show something."""
    return Sam2Network(tiny_model(2, image_size=64))


def session_on(network, frames, **settings) -> VideoSession:
    return VideoSession(Sam2Tracker(network, TrackerSettings(**settings)), frames)


def passed(masks) -> list[tuple[int, list[int]]]:
    return [(m.frame_index, m.object_ids) for m in masks]


def test_only_the_object_that_was_corrected_is_tracked_again_and_only_from_there(lively, frames):
    session = session_on(lively, frames[:10])
    session.add_new_points_or_box(0, 1, points=[[40, 40]], labels=[1])
    session.add_new_points_or_box(2, 2, box=BOX)
    assert passed(session.propagate_in_video()) == [(0, [1]), (1, [1]), *((t, [1, 2]) for t in range(2, 10))]
    assert passed(session.propagate_in_video()) == []
    session.add_new_points_or_box(6, 2, points=[[20, 20]], labels=[0])
    assert passed(session.propagate_in_video()) == [(t, [2]) for t in range(6, 10)]
    assert passed(session.propagate_in_video(4, 1)) == [(4, [1, 2]), (5, [1, 2])]
    assert passed(session.propagate_in_video(reverse=True)) == [(2, [2]), (1, [2]), (0, [1, 2])]


def test_a_pass_that_is_left_early_is_gone_on_with(lively, frames):
    session = session_on(lively, frames[:8])
    session.add_new_points_or_box(0, 1, box=BOX)
    whole = {m.frame_index: m.logits_Nhw for m in session.propagate_in_video()}
    session.reset_state()
    assert session.object_ids == []
    session.add_new_points_or_box(0, 1, box=BOX)
    for masks in session.propagate_in_video():
        if masks.frame_index == 3:
            break
    # The frame at which the loop was left has been tracked.
    rest = {m.frame_index: m.logits_Nhw for m in session.propagate_in_video()}
    assert list(rest) == [4, 5, 6, 7]
    assert all(torch.equal(rest[t], whole[t]) for t in rest)


def test_a_prompt_between_two_frames_takes_the_loop_back(lively, frames):
    session = session_on(lively, frames[:8])
    session.add_new_points_or_box(0, 1, box=BOX)
    order = []
    for masks in session.propagate_in_video(max_frame_num_to_track=9):
        order.append(masks.frame_index)
        if order == [0, 1, 2, 3, 4]:
            session.add_new_points_or_box(2, 1, points=[[20, 20]], labels=[0])
    assert order == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_by_default_a_correction_is_still_there_when_the_frame_is_passed_again(lively, frames):
    """A memory like its neighbours' would be overwritten: the mask that the user mended would be wrong once more."""
    session = session_on(lively, frames[:12])
    session.add_new_points_or_box(0, 1, box=BOX)
    before = {m.frame_index: m.masks()[0] for m in session.propagate_in_video()}
    mended = session.add_new_points_or_box(5, 1, points=[[20, 20], [100, 80]], labels=[0, 1]).masks()[0]
    assert (mended != before[5]).any()
    for start in (None, 0, 3):
        found = {m.frame_index: m.masks()[0] for m in session.propagate_in_video(start)}
        assert np.array_equal(found[5], mended), f"lost when tracking from {start}"
    assert session.prompted == {1: [0, 5]}


def test_by_default_a_correction_a_second_back_is_what_it_would_be_with_nothing_forgotten(exact, frames):
    """The defaults hold the memories around it, and the mask that it corrects."""
    clip, back = frames[:40], 30
    answers = []
    for policy in (BankPolicy(), BankPolicy(history=1000)):
        session = VideoSession(Sam2Tracker(exact[1], TrackerSettings(bank=policy)), clip)
        session.add_new_points_or_box(0, 1, box=BOX)
        list(session.propagate_in_video())
        answer = session.add_new_points_or_box(len(clip) - 1 - back, 1, points=[[20, 20]], labels=[0])
        answers.append([answer.logits_Nhw, *(m.logits_Nhw for m in session.propagate_in_video())])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_going_back_for_one_object_leaves_the_memories_of_the_others(lively, frames):
    session = session_on(lively, frames[:30], bank=BankPolicy(history=0))
    session.add_new_points_or_box(0, 1, box=BOX)
    session.add_new_points_or_box(0, 2, points=[[40, 40]], labels=[1])
    list(session.propagate_in_video(max_frame_num_to_track=25))
    held = list(session.tracker.state.objects[1].recent)
    session.add_new_points_or_box(2, 2, points=[[20, 20]], labels=[0])
    list(session.propagate_in_video(max_frame_num_to_track=5))
    assert list(session.tracker.state.objects[1].recent) == held


def test_a_session_saved_in_the_middle_goes_on_bit_for_bit(lively, frames):
    session = session_on(lively, frames[:12], non_overlap_masks=True)
    session.add_new_points_or_box(4, 1, box=BOX)
    session.add_new_points_or_box(5, 2, points=[[40, 40]], labels=[1])
    list(session.propagate_in_video(reverse=True))
    list(session.propagate_in_video(max_frame_num_to_track=3))
    data = session.to_bytes()
    answers = []
    for again in (session, VideoSession.from_bytes(lively, data, frames[:12])):
        found = [again.add_new_points_or_box(2, 1, points=[[20, 20]], labels=[0])]  # in the direction that it had
        found += [*again.propagate_in_video(reverse=True), *again.propagate_in_video()]
        answers.append(found)
    assert [m.frame_index for m in answers[0]] == [2, 2, 1, 0, 8, 9, 10, 11]
    for a, b in zip(*answers, strict=True):
        assert a.object_ids == b.object_ids
        assert np.array_equal(a.masks(), b.masks())
    with pytest.raises(UsageError, match="not of a session"):
        VideoSession.from_bytes(lively, session.tracker.to_bytes(), frames)


def test_an_object_whose_prompts_are_all_taken_back_waits_for_one(lively, frames):
    session = session_on(lively, frames[:6])
    session.add_new_points_or_box(0, 1, box=BOX)
    session.add_new_points_or_box(0, 2, points=[[40, 40]], labels=[1])
    list(session.propagate_in_video())
    session.clear_all_prompts_in_frame(0, 1)
    assert passed(session.propagate_in_video(0)) == [(t, [2]) for t in range(6)]
    session.add_new_points_or_box(3, 1, box=BOX)
    assert passed(session.propagate_in_video()) == [(t, [1]) for t in range(3, 6)]


def test_masks_that_must_not_overlap_share_no_pixel_and_cover_the_same(lively, frames):
    free = session_on(lively, frames[:4])
    apart = session_on(lively, frames[:4], non_overlap_masks=True)
    for session in (free, apart):
        session.add_new_points_or_box(0, 1, box=BOX)
        session.add_new_points_or_box(0, 2, points=[[40, 40]], labels=[1])
        session.add_new_points_or_box(0, 3, points=[[60, 60], [5, 5]], labels=[1, 0])
    overlapped = 0
    for a, b in zip(free.propagate_in_video(), apart.propagate_in_video()):
        overlapped += int((a.masks().sum(0) > 1).sum())
        assert b.masks().sum(0).max() <= 1
        assert np.array_equal(b.masks().any(0), a.masks().any(0))
        assert np.array_equal(b.mask(2), b.masks()[1])
    assert overlapped, "nothing overlapped: this would show nothing"


def test_overlaps_are_decided_alike_in_batches_of_any_size():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 8, 8)).astype(np.float32))
    masks = FrameMasks(0, list(range(7)), logits, torch.ones(7), torch.ones(7), (20, 30), True)
    assert np.array_equal(masks.masks(at_once=2), masks.masks(at_once=16))


def test_small_holes_are_filled_by_area(lively, frames):
    from scipy.ndimage import label

    plain, filled = session_on(lively, frames[:3]), session_on(lively, frames[:3], fill_hole_area=5)
    changed = 0
    for session in (plain, filled):
        session.add_new_points_or_box(0, 1, box=BOX)
    for a, b in zip(plain.propagate_in_video(), filled.propagate_in_video()):
        regions, count = label(a.logits_Nhw[0].numpy() <= 0, np.ones((3, 3)))
        small = [r for r in range(1, count + 1) if (regions == r).sum() <= 5]
        expected = torch.where(torch.from_numpy(np.isin(regions, small)), 0.1, a.logits_Nhw[0])
        assert torch.equal(b.logits_Nhw[0], expected)
        changed += len(small)
    mask = np.ones((6, 6), bool)
    mask[2, 2] = mask[4, 4] = mask[0, :] = False
    assert small_regions(~mask, 1).sum() == 2
    assert mend_masks(torch.zeros(0, 6, 6), 3).shape == (0, 6, 6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.add_new_points_or_box(9, 1, box=BOX), "`frame_idx` is 9, but the video has frames 0 to 5"),
        (lambda s: s.propagate_in_video(), "no object has a prompt"),
        (lambda s: s.remove_object(1), "object 1 is not tracked"),
        (lambda s: s.clear_all_prompts_in_frame(0, 1), "object 1 is not tracked"),
        (lambda s: s.add_new_points_or_box(0, 1), "is empty"),
        (lambda s: s.add_new_mask(0, 1, np.zeros((96, 128), bool)), "no pixel set"),
    ],
)
def test_a_wrong_call_is_named_before_anything_is_changed(lively, frames, call, said):
    session = session_on(lively, frames[:6])
    with pytest.raises(UsageError, match=said):
        call(session)
    assert session.object_ids == []


def test_a_prompt_that_is_not_there_can_not_be_taken_back(lively, frames):
    session = session_on(lively, frames[:6])
    session.add_new_points_or_box(0, 1, box=BOX)
    with pytest.raises(UsageError, match="no prompt on frame 3"):
        session.clear_all_prompts_in_frame(3, 1)
    with pytest.raises(UsageError, match="`start_frame_idx` is 77"):
        session.propagate_in_video(77)


def test_frames_that_end_early_end_the_pass(lively, frames):
    class Short(list):
        """Says that it has more than it has, as headers of damaged files do; then knows better."""

        ended = False

        def __len__(self):
            return super().__len__() + (0 if self.ended else 3)

        def __getitem__(self, index):
            self.ended = self.ended or index >= super().__len__()
            return super().__getitem__(index)

    session = session_on(lively, Short(frames[:4]))
    session.add_new_points_or_box(0, 1, box=BOX)
    assert [m.frame_index for m in session.propagate_in_video()] == [0, 1, 2, 3]


def test_a_file_of_calls_does_what_the_calls_do(lively, frames, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "mask.png"), np.pad(np.full((40, 50), 255, np.uint8), ((20, 36), (30, 48))))
    (tmp_path / "calls.yaml").write_text(
        "- {frame_idx: 0, obj_id: 1, points: [[40, 40]], labels: [1]}\n"
        "- {frame_index: 1, object_id: 2, mask: mask.png}\n"
        "- propagate_in_video: {}\n"
        "- clear_all_prompts_in_frame: {frame_idx: 1, obj_id: 2}\n"
        "- add_new_points_or_box: {frame_idx: 4, obj_id: 1, points: [[20, 20]], labels: [0]}\n"
    )
    session = session_on(lively, frames[:6])
    found = list(run_calls(session, read_calls(tmp_path / "calls.yaml"), tmp_path))
    assert passed(found) == [(0, [1]), (1, [2]), (0, [1]), *((t, [1, 2]) for t in range(1, 6)), (4, [1])]
    assert session.prompted == {1: [0, 4], 2: []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "write a list of prompts"),
        ("- {points: [[1, 2]], labels: [1], when: 3}", "entry 1: when: unknown key; there are points"),
        ("- {frame_idx: 0, box: [1, 2, 3, 4]}\n- {frame_idx: -1, box: [1, 2, 3, 4]}", "entry 2: frame_idx"),
        ("- {box: [1, 2, .nan, 4]}", "entry 1: box.2: Input should be a finite number"),
        ("- [", "can't be read as JSON or YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_entry(tmp_path, text, said):
    (tmp_path / "calls.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_calls(tmp_path / "calls.yaml")


def test_a_mask_file_that_is_none_is_named(lively, frames, tmp_path):
    (tmp_path / "calls.yaml").write_text("- {mask: nothing.png}")
    with pytest.raises(UsageError, match=r"nothing\.png is no picture"):
        list(run_calls(session_on(lively, frames[:2]), read_calls(tmp_path / "calls.yaml"), tmp_path))
