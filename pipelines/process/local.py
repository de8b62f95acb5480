"""Workers without Ray, for a machine that one actor fills: a process builds an actor once and runs blocks through it.

Ray takes many seconds and half a gigabyte to start, and gives such a machine nothing but processes that may die. What ends a
worker costs the block that it had; what waited behind it goes to the next worker. A worker tells, in a file that outlives it,
which op is at work on which rows: so a block can be run again without what ended the worker (`LocalWorkers.run_carefully`).
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import pyarrow as pa

from pipelines.process.metrics import IN_FLIGHT, WORKER_DEATHS, current
from pipelines.process.worker_process import take_process
from vfm_ops.errors import VfmError
from vfm_ops.processes import how_it_ended

DEATHS = 3  # of workers, until a block is given up
MOST_LOST = 50  # rows that an op may end a worker on, in one run
BLAME = "blame"  # column of a block that comes again
CAN_GO_ON = "what was committed stays, and the same command goes on"
AHEAD = 2  # blocks that a worker has: the next one is there when it ends the first


class WorkerDied(Exception):
    """A worker ended while it had a block. Its text says how. op, rows: which op was at work, on rows of which ids."""

    def __init__(self, how: str, op: str | None = None, rows: Sequence[Any] = ()) -> None:
        super().__init__(how)
        self.op, self.rows = op, rows


Answer = tuple[pa.Table, list[pa.Table] | WorkerDied]


class Worker:
    """One process, and the blocks that it has; they are answered in order."""

    def __init__(self, actor: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None = None) -> None:
        self.process = take_process()
        self.connection = self.process.connection
        # It may have been started a while ago; and torch takes the number of its threads from there when it is imported.
        self._tell((dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {}), sys.path))
        self._tell((actor, arguments))

    def send(self, block: pa.Table) -> None:
        """Gives it a block."""
        self._tell(block)

    def receive(self) -> list[pa.Table]:
        """What it makes of the oldest of its blocks. Raises WorkerDied."""
        try:
            return list(self.connection.recv())
        except (EOFError, ConnectionError):
            ended = self.process.popen.wait()
            raise WorkerDied(how_it_ended(ended), *_noted(self.process.notes.fileno())) from None

    @staticmethod
    def ready(workers: list[Worker]) -> list[Worker]:
        """Those of some workers that have an answer, or died; waits for the first."""
        there = set(wait([worker.connection for worker in workers]))
        return [worker for worker in workers if worker.connection in there]

    def close(self) -> None:
        """Ends it at once."""
        self.process.close()

    def _tell(self, what: Any) -> None:
        try:
            self.connection.send(what)
        except ConnectionError:
            return  # it has died; who waits for an answer is told how


class LocalWorkers:
    """Some workers, each with an actor of its own. They start when there is something to do; close them, or use this as a
    context manager.

    actor: a class of the product, or of an installed package; called with the arguments in a process of its own. count: at
    once. threads: of each one's own in torch and other users of OpenMP; None: its default.
    """

    def __init__(
        self, actor: Callable[..., Any], arguments: tuple[Any, ...], count: int = 1, threads: int | None = None
    ) -> None:
        self._lanes = [_Lane((actor, arguments, threads)) for _ in range(count)]
        self._lost: set[Any] = set()  # rows that ops ended workers on

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers at once."""
        for lane in self._lanes:
            lane.close()

    def run(self, blocks: Iterable[pa.Table]) -> Iterator[Answer]:
        """Each block, and what the actor made of it, or how its worker died; in order where there is one worker."""
        coming = iter(blocks)
        while True:
            for lane in self._lanes:
                lane.fill(coming)
            current().set(IN_FLIGHT, sum(len(lane.had) for lane in self._lanes))
            busy = {id(lane.worker): lane for lane in self._lanes if lane.worker and lane.had}
            if not busy:
                return
            for worker in Worker.ready([lane.worker for lane in busy.values() if lane.worker]):
                lane = busy[id(worker)]
                yield lane.had.popleft(), lane.answer()

    def run_carefully(self, blocks: Iterable[pa.Table]) -> Iterator[Answer]:
        """As `run`, but an op that ends a worker costs the rows that it did so on its own values, and nothing else.

        A block that cost a worker comes again with a column BLAME, from which the actor's stages see which rows to give to an
        op alone, and which not at all. One whose worker no op has ended is tried DEATHS times. VfmError where an op ends too
        many.
        """
        while True:
            again = []
            for block, made in self.run(blocks):
                block, known = Blame.of(block)
                if isinstance(made, WorkerDied) and block.num_rows and (blame := _blamed(known, made)) is not None:
                    self._lost.update(row for rows in blame.lost.values() for row in rows)
                    if len(self._lost) > MOST_LOST:
                        raise VfmError(
                            f"op {made.op} ended its worker ({made}), as on {MOST_LOST} rows before: mend it, or leave it out; "
                            f"{CAN_GO_ON}"
                        )
                    again.append(blame.put_on(block))
                else:
                    yield block, made
            if not again:
                return
            blocks = again


class Careful:
    """Actor: runs each block carefully, in a worker of its own. For Ray, to which an actor that ends is no more than that.

    actor, arguments, threads: see `LocalWorkers`. instead: what to give in place of a block that was given up, from it and
    the WorkerDied or VfmError that says why.
    """

    def __init__(
        self,
        actor: Callable[..., Any],
        arguments: tuple[Any, ...],
        threads: int | None,
        instead: Callable[[pa.Table, Exception], list[pa.Table]],
    ) -> None:
        self.workers, self.instead = LocalWorkers(actor, arguments, 1, threads), instead

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """What the actor makes of a block."""
        try:
            for one, made in self.workers.run_carefully([block]):
                yield from self.instead(one, made) if isinstance(made, WorkerDied) else made
        except VfmError as error:
            yield from self.instead(block, error)


@dataclass
class Blame:
    """What is known of a block that cost workers: `alone`, by op, the ids of rows that it is to see one by one; `lost`, by op,
    the rows on which it ended a worker, and how."""

    deaths: int = 0
    alone: dict[str, list[Any]] = field(default_factory=dict)
    lost: dict[str, dict[Any, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, block: pa.Table) -> tuple[pa.Table, Blame | None]:
        """A block as it came first, and what is known of it where it has come again."""
        if BLAME not in block.column_names:
            return block, None
        return block.drop_columns([BLAME]), cls(**json.loads(block[BLAME][0].as_py()))

    def put_on(self, block: pa.Table) -> pa.Table:
        """A block as it came first, as it comes again."""
        return block.append_column(BLAME, pa.array([json.dumps(asdict(self))] * block.num_rows, pa.string()))


def _blamed(known: Blame | None, death: WorkerDied) -> Blame | None:
    """What the next worker is to know; None where there is no use in another."""
    blame = known or Blame()
    blame.deaths += 1
    if death.op is None or not death.rows:
        return blame if blame.deaths < DEATHS else None
    # Of a first death, an op may be to blame that had several batches under way: what comes again runs one by one.
    if known and len(death.rows) == 1:
        blame.lost.setdefault(death.op, {})[death.rows[0]] = f"the op ended its worker ({death})"
    else:
        blame.alone.setdefault(death.op, []).extend(death.rows)
    return blame


def note(op: str | None, rows: pa.ChunkedArray | None = None) -> None:
    """Tells which op is at work now, on rows of which ids; None: no op. Nobody listens where there is no such worker."""
    if _notes is not None:
        data = json.dumps([op, [] if rows is None else rows.to_pylist()]).encode()
        os.pwrite(_notes, len(data).to_bytes(8, "little") + data, 0)


_notes: int | None = None  # where a worker tells


def _noted(fd: int) -> tuple[str | None, list[Any]]:
    size = int.from_bytes(os.pread(fd, 8, 0), "little")
    try:
        op, rows = json.loads(os.pread(fd, size, 8))
    except ValueError:  # nothing yet, or it died as it told
        return None, []
    return op, rows


class _Lane:
    """One worker after another, and the blocks that the one of now has."""

    def __init__(self, start: tuple[Any, ...]) -> None:
        self.start = start
        self.worker: Worker | None = None
        self.had: deque[pa.Table] = deque()

    def fill(self, coming: Iterator[pa.Table]) -> None:
        """Gives the worker what it has room for; starts one where there is something to do."""
        new = list(islice(coming, AHEAD - len(self.had)))
        self.had.extend(new)
        if self.had and self.worker is None:
            self.worker, new = Worker(*self.start), list(self.had)
        for block in new:
            assert self.worker
            self.worker.send(block)

    def answer(self) -> list[pa.Table] | WorkerDied:
        """What the oldest block came to."""
        assert self.worker
        try:
            return self.worker.receive()
        except WorkerDied as death:
            current().add(WORKER_DEATHS)
            self.close()
            return death

    def close(self) -> None:
        """Ends the worker."""
        if self.worker:
            self.worker.close()
        self.worker = None


def answer(actor: Any, block: pa.Table) -> list[pa.Table]:
    """What an actor makes of a block, which may be one table or several."""
    made = actor(block)
    return [made] if isinstance(made, pa.Table) else list(made)


def main(fd: int, notes: int, imports: str) -> None:
    """The worker: what it is to import, its actor, then blocks, until the other side is gone."""
    # Run as a module, this file is there twice: the ops' stages know it by its name.
    importlib.import_module("pipelines.process.local")._notes = notes  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    if imports:
        importlib.import_module(imports)
    connection = Connection(fd)
    try:
        environment, sys.path[:] = connection.recv()
        os.environ.update(environment)
        make, arguments = connection.recv()
    except (EOFError, OSError):  # started ahead, and never needed
        os._exit(0)
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
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
