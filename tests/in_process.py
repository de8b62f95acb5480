"""A worker of `pipelines.process.local` that is no process: for tests that look into it, or start many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipelines.process.local import answer


class InProcess:
    """What `local.Worker` does, in this process."""

    def __init__(self, actor: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None = None) -> None:
        self.actor, self.blocks = actor(*arguments), deque[pa.Table]()

    def send(self, block: pa.Table) -> None:
        """See `Worker`."""
        self.blocks.append(block)

    def receive(self) -> list[pa.Table]:
        """See `Worker`; what goes wrong outside an actor's care is raised as it is."""
        return answer(self.actor, self.blocks.popleft())

    @staticmethod
    def ready(workers: list[InProcess]) -> list[InProcess]:
        """All: each answers when it is asked."""
        return workers

    def close(self) -> None:
        """Ends the actor's decoders."""
        self.actor.close()
