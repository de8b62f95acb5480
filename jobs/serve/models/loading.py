"""A replica's model: loaded when the replica starts, and where that failed, again by each request that needs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from vfm_ops.errors import UsageError, VfmError, WeightsUnavailable

T = TypeVar("T")
log = logging.getLogger("ray.serve")


def load_or_unavailable(load: Callable[[], T]) -> T:
    """What `load` returns. What a checkpoint lacks is no fault of the request: its UsageError becomes WeightsUnavailable."""
    try:
        return load()
    except UsageError as error:
        raise WeightsUnavailable(str(error)) from error


class LoadedModel(Generic[T]):
    """What `load` returns. required: a replica without it must not start, so a VfmError is raised at once.

    Where it is not, the replica starts and its requests are told why they can't be answered: one that never starts would
    let them wait for their deadline.
    """

    def __init__(self, load: Callable[[], T], required: bool) -> None:
        self._load = load
        self._value: T | None = None
        self._lock = asyncio.Lock()
        try:
            self._value = load_or_unavailable(load)
        except VfmError as error:
            if required:
                raise
            log.error("the model can't be loaded: %s", error)

    async def get(self) -> T:
        """The model. VfmError as long as it can't be loaded."""
        async with self._lock:
            if self._value is None:
                self._value = await asyncio.to_thread(load_or_unavailable, self._load)
            return self._value
