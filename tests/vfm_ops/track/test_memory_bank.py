"""What is remembered, what is read, and that nothing else is kept: the rules on plain numbers, without a network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm_ops.errors import UsageError
from vfm_ops.track.intervals import FrameIntervals
from vfm_ops.track.memory_bank import (
    BankPolicy,
    FrameMemory,
    ObjectBank,
    nearest_prompted,
    select_memory_frames,
    select_pointer_frames,
)

FRAMES = st.sets(st.integers(0, 60), max_size=30)


def memory() -> FrameMemory:
    return FrameMemory(torch.zeros(4), torch.zeros(2, 2, dtype=torch.bfloat16), 1.0, 1.0)


def test_frame_20_after_a_prompt_at_0_reads_frames_0_and_14_to_19():
    pairs = select_memory_frames(20, [0], range(1, 20), False, BankPolicy())
    assert pairs == [(0, 0), (6, 14), (5, 15), (4, 16), (3, 17), (2, 18), (1, 19)]


def test_in_reverse_the_frames_ahead_are_the_recent_ones():
    pairs = select_memory_frames(20, [40], range(21, 40), True, BankPolicy())
    assert pairs == [(0, 40), (6, 26), (5, 25), (4, 24), (3, 23), (2, 22), (1, 21)]


def test_sixteen_pointers_with_the_frame_itself_and_none_of_the_future():
    pairs = select_pointer_frames(30, [0, 50], range(1, 30), False, BankPolicy())
    assert pairs == [(30, 0)] + [(d, 30 - d) for d in range(1, 16)]


@settings(max_examples=200)
@given(st.integers(0, 60), FRAMES, st.integers(1, 8))
def test_nearest_prompted_frames_hold_one_on_either_side_and_none_nearer_is_left_out(frame, prompted, limit):
    chosen = nearest_prompted(frame, sorted(prompted), limit)
    assert len(chosen) == len(set(chosen)) == min(limit, len(prompted)) or limit < 2
    before, after = [t for t in prompted if t < frame], [t for t in prompted if t >= frame]
    assert not before or max(before) in chosen
    assert not after or min(after) in chosen
    must = {max(before, default=None), min(after, default=None)} - {None}
    far = max((abs(t - frame) for t in set(chosen) - must), default=0)
    assert all(abs(t - frame) >= far for t in prompted - set(chosen))


@settings(max_examples=100)
@given(st.integers(0, 4), st.integers(20, 80), st.booleans())
def test_eviction_never_loses_what_the_next_frames_read(history, count, reverse):
    """Against a bank that keeps everything: the same memories and pointers are selected, in the same order."""
    policy = BankPolicy(history=history)
    kept, everything = ObjectBank(), ObjectBank()
    order = range(count, -1, -1) if reverse else range(count + 1)
    for t in order:
        chosen = []
        for bank in (kept, everything):
            held = [i for i, m in bank.recent.items() if m.features_LM is not None]
            chosen.append(
                (
                    select_memory_frames(t, bank.prompted, held, reverse, policy),
                    select_pointer_frames(t, bank.prompted, bank.recent, reverse, policy),
                )
            )
        assert chosen[0] == chosen[1]
        prompted = t == order[0] or t % 17 == 0
        kept.write(t, memory(), prompted)
        everything.write(t, memory(), prompted)
        kept.evict(t, policy)
    assert len(kept.recent) <= policy.max_pointers + history
    assert sum(m.features_LM is not None for m in kept.recent.values()) <= policy.slots + history


@pytest.mark.parametrize(("policy", "left"), [("first_and_recent", [0, 8, 9]), ("recent", [7, 8, 9])])
def test_a_cap_on_prompted_frames_keeps_those_that_its_policy_says(policy, left):
    bank = ObjectBank()
    for t in range(10):
        bank.write(t, memory(), True)
        bank.evict(t, BankPolicy(max_prompted=3, prompted_policy=policy))
    assert list(bank.prompted) == left


def test_a_copy_is_left_alone_by_what_comes_later():
    bank = ObjectBank()
    for t in range(10):
        bank.write(t, memory(), t == 0)
    copy = bank.copy()
    for t in range(10, 40):
        bank.write(t, memory(), False)
        bank.evict(t, BankPolicy())
    assert list(copy.recent) == list(range(1, 10))
    assert all(m.features_LM is not None for m in copy.recent.values())
    assert 30 not in copy.tracked


@settings(max_examples=100)
@given(st.lists(st.integers(0, 200), max_size=120))
def test_intervals_hold_what_a_set_holds(indices):
    intervals = FrameIntervals()
    for i in indices:
        intervals.add(i)
    assert {i for i in range(-1, 202) if i in intervals} == set(indices)
    assert len(intervals) == len(set(indices))
    assert all(a[1] + 1 < b[0] for a, b in zip(intervals.intervals, intervals.intervals[1:]))


def test_intervals_of_a_caller_who_skips_frames_stay_small_and_lose_none():
    intervals = FrameIntervals(limit=8)
    for i in range(0, 3000, 3):
        intervals.add(i)
    assert len(intervals.intervals) <= 8
    assert all(i in intervals for i in range(0, 3000, 3))


@pytest.mark.parametrize("wrong", [{"history": -1}, {"max_prompted": 0}, {"prompted_policy": "all"}])
def test_a_wrong_policy_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        BankPolicy(**wrong)
