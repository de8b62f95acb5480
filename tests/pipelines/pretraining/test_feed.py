"""The feed gives the samples it says, in the order it says, whole batches, on any number of ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.pretraining.feed import Slice, Views, ray_feed, thread_feed
from pipelines.pretraining.items import resolve
from tests.pipelines.picture_lake import picture_lake, select
from tests.pipelines.pretraining.tiny import tiny_plan
from tests.vfm_ops.pretrain.tiny import build


def test_stopped_ten_times_and_resumed_on_other_workers_a_run_reads_the_same_ids():
    rng = np.random.default_rng()
    stops = [0, *sorted(rng.choice(np.arange(1, 40), 10, replace=False).tolist()), 40]
    alone = [place for step in range(40) for place in Slice(0, 1, 8, 20, 3).places(step)]
    broken = []
    for first, last in itertools.pairwise(stops):
        world = int(rng.choice([1, 2, 4, 8]))
        for step in range(first, last):
            broken += [place for rank in range(world) for place in Slice(rank, world, 8, 20, 3).places(step)]
    assert broken == alone, f"stopped at {stops}"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_read_the_samples_of_one_rank_in_its_order(world):
    alone = [place for step in range(7) for place in Slice(0, 1, 8, 20, 3).places(step)]
    together = [
        place for step in range(7) for rank in range(world) for place in Slice(rank, world, 8, 20, 3).places(step)
    ]
    assert together == alone
    for epoch in range(2):
        assert sorted(i for e, i in alone if e == epoch) == list(range(20)), "each sample once an epoch, none dropped"


def test_threads_and_ray_data_make_the_same_batches(ray_local, lake):
    import ray

    plan = tiny_plan("simclr")
    objective = build("simclr")
    items = resolve(lake, plan).train
    views = Views(items, objective.view_plan(objective.config), 0)
    part = Slice(1, 2, 8, len(items), 0)
    threads = list(thread_feed(views, part, 2, 5, threads=3, prefetch=2))
    remote = list(ray_feed(ray.put(views), part, 2, 5))
    assert len(threads) == len(remote) == 3
    for (mine, mine_ids), (theirs, their_ids) in zip(threads, remote, strict=True):
        assert mine_ids == their_ids
        assert len(mine_ids) == 4
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert np.array_equal(mine[key], theirs[key])


def test_an_undecodable_frame_is_replaced_so_that_the_batch_stays_full(tmp_path):
    lake = picture_lake(tmp_path / "lake", 8)
    lake.update("frames", {"jpeg": "X'00'"}, "frame_id LIKE '%3:0'")
    items = resolve(lake, tiny_plan("simclr", "holdout=0")).train
    assert [s["id"][31:] for s in items.load([2, 3, 4])] == ["2:0", "4:0", "4:0"]
    assert [int(items.load([3])[0]["label"])] == [int(items.labels[4])]


def test_items_follow_the_selection_in_frame_order_with_their_labels(tmp_path):
    lake = picture_lake(tmp_path / "lake", 12)
    chosen = [f"{i:032x}:0" for i in (7, 2, 9, 4)]
    select(lake, "four", chosen)
    corpus = resolve(lake, tiny_plan("simclr", "holdout=0", selection="four"))
    read = corpus.train.load(range(4))
    assert [s["id"] for s in read] == sorted(chosen)
    assert [corpus.classes[s["label"]] for s in read] == ["blue", "green", "green", "red"]
    assert [s["caption"] for s in read] == [f"a {corpus.classes[s['label']]} square" for s in read]


def test_held_out_assets_are_in_neither_training_nor_lost(lake):
    corpus = resolve(lake, tiny_plan("simclr", "holdout=0.3"))
    train, held = ({s["id"] for s in part.load(range(len(part)))} for part in (corpus.train, corpus.held))
    assert not train & held
    assert len(train) + len(held) == 48
    assert 5 <= len(held) <= 24
