"""The lease: one writer at a time, on any store.

The lease is one row of a Lance table. Taking it is an update whose WHERE says that nobody holds it; Lance re-evaluates that
clause on conflict, so of two contenders exactly one updates a row. A holder that died on this machine is seen by its pid, one
on another machine by its heartbeat.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType

import psutil
import pyarrow as pa

from pipelines.lake.lake import Lake
from pipelines.lake.schema import SCHEMAS
from vfm_ops.errors import UsageError

HEARTBEAT_S = 10.0
EXPIRES_S = 60.0


def new_run_id() -> str:
    """Id of a run: UTC time of its start, and six random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


class Lease:
    """Context manager: holds a lake for `run_id`, renews itself, gives itself back. UsageError when another run holds it."""

    def __init__(self, lake: Lake, run_id: str) -> None:
        self.lake, self.run_id = lake, run_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        me = psutil.Process()
        if self.lake.dataset("lease") is None:
            free = {
                "name": ["writer"],
                "run_id": [None],
                "host": [None],
                "pid": [0],
                "pid_started": [0.0],
                "heartbeat": [0.0],
            }
            self.lake.append("lease", pa.table(free, schema=SCHEMAS["lease"]))
        holder = self.lake.read("lease").to_pylist()[0]
        if holder["run_id"] is not None and _alive(holder):
            raise _busy(self.lake, holder)
        was = "run_id IS NULL" if holder["run_id"] is None else f"run_id = '{holder['run_id']}'"
        values = {
            "run_id": f"'{self.run_id}'",
            "host": f"'{socket.gethostname()}'",
            "pid": str(me.pid),
            "pid_started": repr(me.create_time()),
            "heartbeat": repr(time.time()),
        }
        if self.lake.table("lease").update(values, where=was)["num_rows_updated"] == 0:
            raise _busy(self.lake, self.lake.read("lease").to_pylist()[0])
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        ds = self.lake.table("lease")
        ds.update({"run_id": "NULL"}, where=f"run_id = '{self.run_id}'")

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self.lake.table("lease").update({"heartbeat": repr(time.time())}, where=f"run_id = '{self.run_id}'")


def _alive(holder: dict) -> bool:
    if holder["host"] == socket.gethostname():
        try:
            process = psutil.Process(holder["pid"])
        except psutil.NoSuchProcess:
            return False
        # A pid is reused; a pid with its start time is not. Our own pid means that an earlier lease was never given back.
        return abs(process.create_time() - holder["pid_started"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return time.time() - holder["heartbeat"] < EXPIRES_S


def _busy(lake: Lake, holder: dict) -> UsageError:
    return UsageError(
        f"the lake {lake.root} is being written by run {holder['run_id']} (pid {holder['pid']} on {holder['host']}): "
        "wait for it, or stop it and try again"
    )
