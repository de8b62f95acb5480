"""The lease: one writer at a time, on any store.

The lease is one row of a Lance table. Taking it is an update whose WHERE says what was seen; Lance re-evaluates that clause on
conflict, so of two contenders exactly one updates the row. A holder that died on this machine is seen by its pid. One elsewhere
is watched: it moves `beat` every few seconds, and one whose beat stands still for EXPIRES_S by the watcher's own polls is taken
for dead. No two clocks are compared. A holder taken for dead may only be paused: the taker raises the epoch of every table (see
`fence`), after which nothing that the old holder does can be committed.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa

from pipelines.lake.access import writable
from pipelines.lake.fence import LostLease, epoch_of, raise_fence
from pipelines.lake.keys import op_tables
from pipelines.lake.lake import Lake, lance
from pipelines.lake.schema import SCHEMAS, UNLEASED
from pipelines.lake.sql import equals, literal
from vfm_ops.errors import UsageError, VfmError

HEARTBEAT_S = float(os.environ.get("VFM_HEARTBEAT_S", "10"))
EXPIRES_S = float(os.environ.get("VFM_LEASE_EXPIRES_S", "60"))
# Settled first: what an old holder still adds to the other tables before they are fenced belongs to nobody, and is swept.
_FIRST = ("ledger", "quarantine", "coverage")
FENCED_TABLES = (*_FIRST, *(t for t in SCHEMAS if t not in (*_FIRST, *UNLEASED, "lease")))

logger = logging.getLogger(__name__)
Row = dict[str, Any]


class Lease:
    """Context manager: holds a lake for `run_id`, renews itself, gives itself back.

    While it is held, every change of the lake through the same `Lake` object is fenced by its epoch. Raises UsageError when
    another run holds the lake; changes raise LostLease once another run has taken it. watch: whether to wait for up to
    EXPIRES_S to see if a holder on another machine is alive; without it such a holder counts as alive.
    """

    def __init__(self, lake: Lake, run_id: str, watch: bool = True) -> None:
        self.lake, self.run_id, self.watch, self.epoch = lake, run_id, watch, 0
        # Whether nothing is left of a run that was killed: the one before gave the lake back in good order, or this one swept.
        # What does not sweep (an index, a drop) hands the lake on as it found it.
        self.whole = False
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        with writable(self.lake.root):
            self.whole = self._acquire(_ensure_row(self.lake))
        self.lake.lease = self
        self._thread.start()
        if not self.whole:
            try:
                self._fence()
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.lake.lease = None
        if self._lost:
            return
        values = {"run_id": "NULL", "clean": str(error is None and self.whole).lower()}
        try:
            self.lake.attempt("give back the lease", lambda _: _update(self.lake, values, self._mine))
        except VfmError as e:  # what was committed counts; the next run waits until the lease expires
            logger.warning("%s", e)

    def admit(self, table: str, dataset: Any) -> Any:
        """See `pipelines.lake.lake.Fence`."""
        epoch = epoch_of(dataset)
        if self._lost or epoch > self.epoch:
            raise self._lose()
        if epoch == self.epoch:
            return dataset
        raise_fence(self.lake, table, self.epoch)  # the table is younger than the lease
        return self.lake.table(table)

    def _lose(self) -> LostLease:
        self._lost = True
        by = ""
        with suppress(VfmError, OSError):
            by = f" by run {_read(self.lake)['run_id'] or 'that has ended'}"
        return LostLease(
            f"the lake {self.lake.root} was taken{by}, since run {self.run_id} was paused or cut off for too long: "
            "it stops here; what it committed stays, and the same command goes on from there"
        )

    @property
    def _mine(self) -> str:
        return f"{equals('run_id', self.run_id)} AND {equals('epoch', self.epoch)}"

    def _wait_until_free(self, row: Row) -> Row:
        """The row to take. Returns at once when nobody holds it, or a process of this machine that is gone."""
        if row["run_id"] is None or _is_dead(row):
            return row
        if _is_here(row) or not self.watch:
            raise _busy(self.lake, row)
        logger.warning(
            "run %s on %s has not given the lake back: watching for up to %.0f s whether it is alive",
            row["run_id"], row["host"], EXPIRES_S,
        )  # fmt: skip
        # Polls are counted, not seconds: a watcher that was itself paused has seen nothing meanwhile.
        polls = max(4, round(EXPIRES_S / min(1.0, HEARTBEAT_S)))
        for _ in range(polls):
            threading.Event().wait(EXPIRES_S / polls)
            now = _read(self.lake)
            if now["run_id"] is None:
                return now
            if any(now[c] != row[c] for c in ("run_id", "epoch", "beat", "heartbeat")):
                raise _busy(self.lake, now)
        return row

    def _acquire(self, row: Row) -> bool:
        """Takes the lease from whoever `row` says. Returns whether that run had given it back in good order."""
        while True:
            row = self._wait_until_free(row)
            handed_over = row["run_id"] is None and bool(row["clean"])
            self.epoch = (row["epoch"] or 0) + (0 if handed_over else 1)
            holder = self._take(row)
            if holder["run_id"] == self.run_id:  # asked of the row: an update that failed may have been applied
                return handed_over
            if holder["run_id"] is not None:
                raise _busy(self.lake, holder)
            row = holder  # another run was faster, and is done already

    def _take(self, row: Row) -> Row:
        """Writes this run into the row where it still is as it was seen. Returns the row as it is now."""
        process = psutil.Process()
        values = {
            "run_id": literal(self.run_id),
            "host": literal(socket.gethostname()),
            "pid": str(process.pid),
            "pid_started": repr(_started(process.pid)),
            "heartbeat": repr(time.time()),
            "epoch": str(self.epoch),
            "beat": "0",
            "boot_id": literal(_boot_id()),
            "pid_namespace": literal(_pid_namespace()),
            "clean": "false",
        }
        seen = " AND ".join(equals(c, row[c]) for c in ("run_id", "epoch", "beat", "heartbeat"))
        self.lake.attempt("take the lease", lambda _: _update(self.lake, values, seen))
        return _read(self.lake)

    def _fence(self) -> None:
        for table in FENCED_TABLES:
            if self.lake.dataset(table) is None:  # else the old holder could still make it
                self.lake.create_table(table, SCHEMAS[table].empty_table())
            raise_fence(self.lake, table, self.epoch)
        for table in op_tables(self.lake):
            if table not in SCHEMAS and self.lake.dataset(table) is not None:
                raise_fence(self.lake, table, self.epoch)

    def _renew(self) -> None:
        """Moves `beat`. A store that refuses is asked again sooner: one refusal must not end the lease."""
        wait, failing = HEARTBEAT_S, False
        while not self._stop.wait(wait):
            values = {"beat": "beat + 1", "heartbeat": repr(time.time())}
            try:
                self._lost = _update(self.lake, values, self._mine) == 0
                wait, failing = HEARTBEAT_S, False
            except (OSError, ValueError) as e:
                if not failing:
                    logger.warning("the lease of %s could not be renewed, and is tried again: %s", self.lake.root, e)
                wait, failing = HEARTBEAT_S / 4, True
            if self._lost:
                return


def _ensure_row(lake: Lake) -> Row:
    """The lease's row, made where there is none. The table comes with its row: a kill can't leave one without the other."""
    free = pa.Table.from_pylist([{"name": "writer", "epoch": 0, "beat": 0, "clean": True}], SCHEMAS["lease"])
    dataset = lake.dataset("lease")
    if dataset is None:
        lake.create_table("lease", free)
    elif lacking := [f for f in SCHEMAS["lease"] if f.name not in dataset.schema.names]:  # an older version's
        lake.attempt("extend the lease", lambda _: _add_columns(lake, lacking))
    if not lake.count("lease"):  # an older version was killed between the table and its row
        lake.commit("lease", lake.write_fragments("lease", free))
    return _read(lake)


def _add_columns(lake: Lake, fields: list[pa.Field]) -> None:
    dataset = lake.table("lease")
    if missing := [f for f in fields if f.name not in dataset.schema.names]:
        dataset.add_columns(pa.schema(missing))


def _read(lake: Lake) -> Row:
    """The row that counts. Racing starts of an older version could leave two; then the one that was taken most lately."""
    rows = lake.attempt("read the lease", lambda _: lake.read("lease")).to_pylist()
    if not rows:
        raise VfmError(
            f"the lease of {lake.root} has no row: remove {lake.uri('lease')}, which holds no data, and try again"
        )
    return max(rows, key=lambda r: (r["epoch"] or 0, r["run_id"] is not None, r["beat"] or 0))


def _update(lake: Lake, values: dict[str, str], where: str) -> int:
    return lance.dataset(lake.uri("lease")).update(values, where=where)["num_rows_updated"]


def _is_here(row: Row) -> bool:
    """Whether the holder's pid means something to this process: same boot of the same machine, same pid namespace."""
    identity = (row["host"], row["boot_id"], row["pid_namespace"])
    return identity == (socket.gethostname(), _boot_id(), _pid_namespace())


def _is_dead(row: Row) -> bool:
    """Whether the holder ran here and is gone. A pid is reused; a pid with its start time is not."""
    if not _is_here(row):
        return False
    try:
        return (
            abs(_started(row["pid"]) - row["pid_started"]) > 0.05
            or psutil.Process(row["pid"]).status() == psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, OSError):
        return True


def _started(pid: int) -> float:
    """When a process started, in seconds since boot: a clock that is set moves neither. Elsewhere than on Linux, UNIX time."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return psutil.Process(pid).create_time()


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f.read().strip()
    except OSError:
        return f"{uuid.getnode():x}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").removeprefix("pid:").strip("[]")
    except OSError:
        return ""


def _busy(lake: Lake, holder: Row) -> UsageError:
    return UsageError(
        f"the lake {lake.root} is being written by run {holder['run_id']} (pid {holder['pid']} on {holder['host']}): "
        "wait for it, or stop it and try again"
    )
