"""The benchmark compares like with like: both trackers answer the same on the frames that are timed."""

from __future__ import annotations

import torch

from jobs.bench.track_peers import TransformersSession, boxes_for, compare_speed, memory_over_time
from vfm_ops.track.tracker import Sam2Tracker


def test_both_sides_of_the_benchmark_give_the_same_masks(exact, frames):
    prompts = boxes_for(3, 96, 128)
    ours, theirs = Sam2Tracker(exact[1]), TransformersSession(exact[1], (96, 128))
    for t in range(8):
        given = prompts if t == 0 else ()
        mine, other = ours.track(frames[t], prompts=given).logits_Nhw, theirs.track(frames[t], given)
        torch.testing.assert_close(mine.double(), other.double(), rtol=1e-4, atol=1e-4)


def test_the_table_has_a_row_for_each_number_of_objects(network, frames):
    rows = compare_speed(network, frames[:5], objects=(1, 2), timed_frames=3, runtime="torch")
    assert [r["objects"] for r in rows] == [1, 2]
    assert rows[0]["against_one"] == 1
    assert all(r["speedup"] == r["ours"] / r["transformers"] > 0 for r in rows)


def test_memory_is_read_at_the_asked_frames_and_the_bank_is_full_at_both(network, frames):
    found = memory_over_time(network, frames, 2, (20, 40), (5, 10))
    assert found["bank_early"] == found["bank_late"] > 0
    assert found["ours_late"] > 0
