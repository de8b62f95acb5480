"""Workers without Ray, for a machine that one actor fills: a process builds an actor once and runs blocks through it.

Ray takes many seconds and half a gigabyte to start, and gives such a machine nothing but processes that may die. What ends a
worker costs the block that it had; what waited behind it goes to the next worker.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa

AHEAD = 2  # blocks that a worker has: the next one is there when it ends the first


class WorkerDied(Exception):
    """A worker ended while it had a block. Its text says how."""


class Worker:
    """One process, and the blocks that it has; they are answered in order."""

    def __init__(self, actor: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        # Not this process's `__main__`: a script that calls `process` at its top level would call it again.
        command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what an op prints is no result of ours
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path} | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._tell(sys.path)
        self._tell((actor, arguments))

    def send(self, block: pa.Table) -> None:
        """Gives it a block."""
        self._tell(block)

    def receive(self) -> list[pa.Table]:
        """What it makes of the oldest of its blocks. Raises WorkerDied."""
        try:
            return list(self.connection.recv())
        except (EOFError, ConnectionError):
            raise WorkerDied(_how(self.process.wait())) from None

    @staticmethod
    def ready(workers: list[Worker]) -> list[Worker]:
        """Those of some workers that have an answer, or died; waits for the first."""
        there = set(wait([worker.connection for worker in workers]))
        return [worker for worker in workers if worker.connection in there]

    def close(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def _tell(self, what: Any) -> None:
        try:
            self.connection.send(what)
        except ConnectionError:
            return  # it has died; who waits for an answer is told how


def run_locally(
    actor: Callable[..., Any],
    arguments: tuple[Any, ...],
    blocks: Iterable[pa.Table],
    tries: int = 1,
    workers: int = 1,
    threads: int | None = None,
) -> Iterator[tuple[pa.Table, list[pa.Table] | WorkerDied]]:
    """Each block, and what the actor made of it, or how its last worker died; in order where there is one worker.

    actor: a class of the product, or of an installed package; called with the arguments in a process of its own. tries: workers
    that a block may cost. workers: at once. threads: of each one's own in torch and other users of OpenMP; None: its default.
    """
    coming = iter(blocks)
    lanes = [_Lane((actor, arguments, threads), tries) for _ in range(workers)]
    try:
        while True:
            for lane in lanes:
                lane.fill(coming)
            busy = {id(lane.worker): lane for lane in lanes if lane.worker and lane.had}
            if not busy:
                return
            for worker in Worker.ready([lane.worker for lane in busy.values() if lane.worker]):
                lane = busy[id(worker)]
                if (made := lane.take()) is not None:
                    yield lane.had.popleft(), made
    finally:
        for lane in lanes:
            lane.close()


class _Lane:
    """One worker after another, and the blocks that the one of now has."""

    def __init__(self, start: tuple[Any, ...], tries: int) -> None:
        self.start, self.tries = start, tries
        self.worker: Worker | None = None
        self.had: deque[pa.Table] = deque()
        self.died = 0

    def fill(self, coming: Iterator[pa.Table]) -> None:
        """Gives the worker what it has room for; starts one where there is something to do."""
        new = list(islice(coming, AHEAD - len(self.had)))
        self.had.extend(new)
        if self.had and self.worker is None:
            self.worker, new = Worker(*self.start), list(self.had)
        for block in new:
            assert self.worker
            self.worker.send(block)

    def take(self) -> list[pa.Table] | WorkerDied | None:
        """What the oldest block came to; None where it goes to another worker."""
        assert self.worker
        try:
            made: list[pa.Table] | WorkerDied = self.worker.receive()
        except WorkerDied as death:
            self.close()
            self.died, made = self.died + 1, death
            if self.died < self.tries:
                return None
        self.died = 0
        return made

    def close(self) -> None:
        """Ends the worker."""
        if self.worker:
            self.worker.close()
        self.worker = None


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")


def answer(actor: Any, block: pa.Table) -> list[pa.Table]:
    """What an actor makes of a block, which may be one table or several."""
    made = actor(block)
    return [made] if isinstance(made, pa.Table) else list(made)


def main(fd: int) -> None:
    """The worker: its actor, then blocks, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    connection = Connection(fd)
    sys.path[:] = connection.recv()
    make, arguments = connection.recv()
    blocks: deque[pa.Table] = deque()
    there = threading.Semaphore(0)

    def listen() -> None:
        """Reads ahead, and ends the process when nobody is there any more, whatever it is doing."""
        while True:
            try:
                blocks.append(connection.recv())
            except (EOFError, OSError):
                os._exit(0)
            there.release()

    actor = make(*arguments)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        there.acquire()
        made = pickle.dumps(answer(actor, blocks.popleft()), pickle.HIGHEST_PROTOCOL)
        try:
            connection.send_bytes(made)
        except ConnectionError:
            os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
