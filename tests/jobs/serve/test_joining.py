"""Calls that wait together share a pass, and nothing else: not their order, their errors' items, or a client's hanging up."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jobs.serve.joining import Joined


def test_what_waits_while_a_pass_runs_makes_the_next():
    passes: list[list[int]] = []
    go = threading.Event()

    def double(items: list[int]) -> list[int]:
        passes.append(items)
        go.wait(10)
        return [2 * i for i in items]

    async def run() -> list[list[int]]:
        joined = Joined(double, most=4)
        calls = [asyncio.create_task(joined(items)) for items in ([1], [2, 3], [4], [5], [6, 7, 8, 9, 10])]
        while not passes:
            await asyncio.sleep(0)
        go.set()
        return list(await asyncio.gather(*calls))

    assert asyncio.run(run()) == [[2], [4, 6], [8], [10], [12, 14, 16, 18, 20]]
    # All calls were there before the first pass began; one that is larger than a pass goes alone.
    assert passes == [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10]]


def test_a_failed_pass_fails_its_calls_and_the_next_goes_on():
    def fail_on_zero(items: list[int]) -> list[float]:
        return [1 / i for i in items]

    async def run() -> tuple[list[object], list[float]]:
        joined = Joined(fail_on_zero, most=2)
        first = await asyncio.gather(joined([0]), joined([1]), joined([2]), return_exceptions=True)
        return list(first), await joined([4])

    (zero, one, two), later = asyncio.run(run())
    assert isinstance(zero, ZeroDivisionError)
    assert isinstance(one, ZeroDivisionError)
    assert (two, later) == ([0.5], [0.25])


def test_who_hangs_up_costs_the_others_nothing():
    async def run() -> list[int]:
        joined = Joined(lambda items: [i + 1 for i in items], most=8)
        gone = asyncio.create_task(joined([1]))
        kept = asyncio.create_task(joined([2]))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await kept

    assert asyncio.run(run()) == [3]
