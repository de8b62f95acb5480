"""The process of a worker without Ray (`local`), seen from who starts it; and one that is started ahead of its need.

Only the standard library is imported here, so that `vfm process` starts a worker's imports before its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from vfm_ops.processes import python_path

MODULE = "pipelines.process.local"  # whose `main` it runs


class WorkerProcess:
    """A process that imports what it is to need, and then waits to be told which actor to build. notes: see `local.note`."""

    def __init__(self, imports: str = "") -> None:
        ours, theirs = socket.socketpair()
        self.notes = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # Not this process's `__main__`: a script that calls `process` at its top level would call it again.
        command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(self.notes.fileno()), imports]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what an op prints is no result of ours
            pass_fds=[theirs.fileno(), self.notes.fileno()],
            env=os.environ | {"PYTHONPATH": python_path()},
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    def close(self) -> None:
        """Ends it at once."""
        self.popen.kill()
        self.popen.wait()
        self.connection.close()
        self.notes.close()


_ahead: WorkerProcess | None = None


@contextmanager
def started_ahead(imports: str) -> Iterator[None]:
    """Within, the first process that is taken is one that imports a module already. It is ended if none is."""
    global _ahead
    drop_ahead()
    _ahead = WorkerProcess(imports)
    try:
        yield
    finally:
        drop_ahead()


def take_process() -> WorkerProcess:
    """The one that was started ahead, or a new one."""
    global _ahead
    process, _ahead = _ahead, None
    return process or WorkerProcess()


def drop_ahead() -> None:
    """Ends the one that was started ahead, where none has taken it."""
    global _ahead
    if _ahead is not None:
        _ahead.close()
        _ahead = None
