"""Dynamic batching: calls of many clients share a batch; whatever waits when a batch ends makes the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class DynamicBatcher(Generic[In, Out]):
    """`await batcher(items)` gives `run`'s results for them, in order.

    run: takes the items of all calls of a batch, at most `max_batch_size` unless one call alone has more, in a thread; returns
    one result an item. What it raises, all calls of the batch raise. at_once: batches under way at a time; two of them keep a
    device busy while the one's answers are sent. Unlike a window of time (`serve.batch`), this delays nobody: an idle server
    starts a call at once, a busy one fills its batches. For one event loop.
    """

    def __init__(self, run: Callable[[list[In]], Sequence[Out]], max_batch_size: int, at_once: int = 1) -> None:
        self._run, self._max_batch_size, self._at_once = run, max_batch_size, at_once
        self._waiting: deque[tuple[Sequence[In], asyncio.Future[list[Out]]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def __call__(self, items: Sequence[In]) -> list[Out]:
        """One call's results."""
        answer: asyncio.Future[list[Out]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, answer))
        if len(self._workers) < self._at_once:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await answer

    async def _work(self) -> None:
        while calls := self._next_batch():
            try:
                results = await asyncio.to_thread(self._run, [item for items, _ in calls for item in items])
            except Exception as error:
                for _, answer in calls:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            start = 0
            for items, answer in calls:
                if not answer.done():  # else its client hung up
                    answer.set_result(list(results[start : start + len(items)]))
                start += len(items)

    def _next_batch(self) -> list[tuple[Sequence[In], asyncio.Future[list[Out]]]]:
        taken: list[tuple[Sequence[In], asyncio.Future[list[Out]]]] = []
        count = 0
        while self._waiting and (not taken or count + len(self._waiting[0][0]) <= self._max_batch_size):
            items, answer = self._waiting.popleft()
            if not answer.done():
                taken.append((items, answer))
                count += len(items)
        return taken
