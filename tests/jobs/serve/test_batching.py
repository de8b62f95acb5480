"""Calls that wait together share a batch, and nothing else: not their order, their errors' items, or a client's hanging up."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jobs.serve.batching import DynamicBatcher


def test_what_waits_while_a_batch_runs_makes_the_next():
    batches: list[list[int]] = []
    go = threading.Event()

    def double(items: list[int]) -> list[int]:
        batches.append(items)
        go.wait(10)
        return [2 * i for i in items]

    async def run() -> list[list[int]]:
        batcher = DynamicBatcher(double, max_batch_size=4)
        calls = [asyncio.create_task(batcher(items)) for items in ([1], [2, 3], [4], [5], [6, 7, 8, 9, 10])]
        while not batches:
            await asyncio.sleep(0)
        go.set()
        return list(await asyncio.gather(*calls))

    assert asyncio.run(run()) == [[2], [4, 6], [8], [10], [12, 14, 16, 18, 20]]
    # All calls were there before the first batch began; one that is larger than a batch goes alone.
    assert batches == [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10]]


def test_a_failed_batch_fails_its_calls_and_the_next_goes_on():
    def fail_on_zero(items: list[int]) -> list[float]:
        return [1 / i for i in items]

    async def run() -> tuple[list[object], list[float]]:
        batcher = DynamicBatcher(fail_on_zero, max_batch_size=2)
        first = await asyncio.gather(batcher([0]), batcher([1]), batcher([2]), return_exceptions=True)
        return list(first), await batcher([4])

    (zero, one, two), later = asyncio.run(run())
    assert isinstance(zero, ZeroDivisionError)
    assert isinstance(one, ZeroDivisionError)
    assert (two, later) == ([0.5], [0.25])


def test_who_hangs_up_costs_the_others_nothing():
    async def run() -> list[int]:
        batcher = DynamicBatcher(lambda items: [i + 1 for i in items], max_batch_size=8)
        gone = asyncio.create_task(batcher([1]))
        kept = asyncio.create_task(batcher([2]))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await kept

    assert asyncio.run(run()) == [3]
