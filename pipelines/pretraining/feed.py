"""Batches for one rank, in order, made ahead of the step that needs them.

The order of all samples is a permutation of (seed, epoch); global step s takes positions s * B to (s + 1) * B, and rank r the
r-th equal slice of them. So whatever the number of workers, the ids of a step are the same, every batch is full, and the
step number alone says where to go on. What is random in a sample follows from (seed, epoch, id). Neither threads nor Ray
tasks can change any of it: they only decide where the work is done.

`streaming_split` of Ray Data keeps none of these promises (short batches, dropped remainders, an order of its own), so each
rank runs its own ordered Ray Data plan over its own slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from pipelines.pretraining.items import LakeItems, MemoryItems
from vfm_ops.pretrain.augment import ViewPlan, collate, make_views
from vfm_ops.pretrain.data import batch_positions
from vfm_ops.pretrain.text import Tokenize

Places = list[tuple[int, int]]  # (epoch, position among the items)
Batch = dict[str, np.ndarray]
RAY_STEPS = 64  # steps of one Ray Data plan: its start costs a fraction of a second, its length memory on the driver


@dataclass(frozen=True)
class Slice:
    """Which share of each global batch this rank takes."""

    rank: int
    world: int
    batch_size: int
    samples: int
    seed: int

    @property
    def share(self) -> int:
        """Samples of a rank's batch."""
        return self.batch_size // self.world

    def places(self, step: int) -> Places:
        """Of this rank's samples of a global step. Concatenated over ranks, they are the places of one rank alone."""
        whole = batch_positions(step, self.batch_size, self.samples, self.seed)
        return whole[self.rank * self.share : (self.rank + 1) * self.share]


@dataclass(frozen=True)
class Views:
    """Reads, decodes and augments the samples of some places."""

    items: LakeItems | MemoryItems
    plan: ViewPlan
    seed: int
    tokenizer: str | None = None  # the JSON of a tokenizer: it crosses process borders

    def __call__(self, places: Places, tokenize: Tokenize | None) -> tuple[Batch, list[str]]:
        """Returns the batch, and the ids of its samples."""
        samples = self.items.load([index for _, index in places])
        views = [make_views(self.plan, s, self.seed, e, tokenize) for s, (e, _) in zip(samples, places)]
        return collate(views), [str(s["id"]) for s in samples]

    def make_tokenize(self) -> Tokenize | None:
        """The function that turns a caption into ids, None where no caption is wanted."""
        from vfm_ops.pretrain.text import tokenize_with

        tokenizer = self.read_tokenizer()
        return None if tokenizer is None else tokenize_with(tokenizer)

    def read_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`, None where no caption is wanted."""
        if self.tokenizer is None:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer)


def thread_feed(
    views: Views, part: Slice, first: int, last: int, threads: int = 2, prefetch: int = 4
) -> Iterator[tuple[Batch, list[str]]]:
    """Batches of steps first .. last - 1, made in threads of this process; decoding and resizing release the GIL.

    All threads work on one batch: where the step itself fills every core, one busy feed thread would make all of the step's
    threads wait for the one that shares its core.
    """
    tokenize = views.make_tokenize()
    steps = iter(range(first, last))
    with ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:

        def submit(step: int) -> list[Future]:
            places = part.places(step)
            size = -(-len(places) // threads)
            return [pool.submit(views, places[i : i + size], tokenize) for i in range(0, len(places), size)]

        ahead = deque(map(submit, islice(steps, max(1, prefetch))))
        try:
            while ahead:
                made = [future.result() for future in ahead.popleft()]
                ahead.extend(map(submit, islice(steps, 1)))
                batch = {key: np.concatenate([views_of[key] for views_of, _ in made]) for key in made[0][0]}
                yield batch, [name for _, names in made for name in names]
        finally:
            for future in (f for futures in ahead for f in futures):
                future.cancel()


def ray_feed(views: Any, part: Slice, first: int, last: int, prefetch: int = 4) -> Iterator[tuple[Batch, list[str]]]:
    """The same batches, made by Ray Data tasks on any CPU of the cluster. views: an object reference to `Views`."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    for start in range(first, last, RAY_STEPS):
        steps = range(start, min(start + RAY_STEPS, last))
        rows = [{"place": part.places(step)} for step in steps]
        plan = ray.data.from_items(rows, override_num_blocks=len(rows))
        made = plan.map_batches(_make_views, fn_args=(views,), batch_size=None, zero_copy_batch=True)
        for batch in made.iter_batches(batch_size=part.share, prefetch_batches=prefetch, batch_format="numpy"):
            yield batch, [str(i) for i in batch.pop(_IDS)]


_IDS = "_sample_id"


def _make_views(rows: dict[str, np.ndarray], views_ref: Any) -> dict[str, Any]:
    """One step's places to one block: a Ray Data task."""
    import ray

    views: Views = ray.get(views_ref)
    places = [(int(epoch), int(index)) for place in rows["place"] for epoch, index in place]
    batch, ids = views(places, views.make_tokenize())
    return {**batch, _IDS: np.array(ids)}
