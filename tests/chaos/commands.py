"""Commands of the product, each in a process of its own that can be killed at its n-th write.

The processes are forked from a server that has imported the product, which no test process has: a case costs no imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DIED = 137
PRELOAD = [
    "jobs.cli",
    "jobs.process",
    "jobs.ingest",
    "jobs.embed",
    "jobs.curate",
    "jobs.index",
    "jobs.retry",
    "pipelines.curation.run",
    "pipelines.process.run",
    "timm",
    "transformers.models.owlvit.modeling_owlvit",
    "transformers.models.owlvit.processing_owlvit",
    "transformers.models.sam2_video.modeling_sam2_video",
    "vfm_ops.ops.detect",
    "vfm_ops.ops.embed",
    "vfm_ops.ops.track",
]
NINE_DAYS = 9 * 24 * 3600


@dataclass(frozen=True)
class Run:
    """One command line, and what befalls it at one of its writes.

    at: which write, counted from 1 (0: none). when: before it, after it, or in it, where the lease has been checked and the
    commit not been made. fate: `die`; `pause`, the whole process group, as by SIGSTOP; `wait`, at this write, until the file
    `joined` is there; `cut`, the same with heartbeats that fail, as without a network; `worker`: a Ray actor dies, the command
    goes on. host: the machine it believes to be on;
    skew: what its clock is off by, in seconds; expires_s: of the lease.
    """

    argv: tuple[str, ...]
    at: int = 0
    when: Literal["before", "in", "after"] = "before"
    fate: Literal["die", "pause", "wait", "cut", "worker"] = "die"
    joined: str = ""
    host: str = ""
    skew: float = 0.0
    log: str = ""
    expires_s: float = 0.4


def server() -> Any:
    """The multiprocessing context whose processes have the product imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@dataclass
class Started:
    """A command that runs."""

    process: Any
    state: Any  # int[2] in shared memory: writes so far, exit code

    @property
    def writes(self) -> int:
        """How many writes it has made."""
        return int(self.state[0])

    def ended(self) -> int:
        """Waits for its end. Returns its exit code; DIED where it had no time to say one.

        The server's own word for it can't be used: it says 255 now and then of a process that ended well.
        """
        self.process.join()
        return int(self.state[1])


def run(command: Run) -> tuple[int, int]:
    """Runs a command to its end, or its death. Returns its exit code and how many writes it made."""
    started = start(command)
    return started.ended(), started.writes


def start(command: Run) -> Started:
    """Starts a command."""
    context = server()
    state = context.Array("i", [0, DIED])
    process = context.Process(target=_child, args=(command, state, dict(os.environ)), daemon=False)
    process.start()
    return Started(process, state)


def calls(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a process of its own, and returns what it returns."""
    context = server()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, function, args, dict(os.environ)))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def age(folder: str | Path, seconds: float = NINE_DAYS) -> None:
    """Makes every file of a lake older, as it is when maintenance comes later."""
    then = time.time() - seconds
    for path in Path(folder).rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def _call(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    pipe.send(function(*args))


def _child(command: Run, state: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the server that this is forked from has that of its own start
    os.setsid()  # its decoders go with it, as with a machine that loses power
    log = os.open(command.log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from jobs.cli import main
    from pipelines.process import local
    from tests.in_process import InProcess

    _count_writes(command, state)
    _set_machine(command)
    local.Worker = InProcess  # type: ignore[assignment,misc]  # its writes count, and it costs no imports

    state[1] = main(list(command.argv))
    sys.stdout.flush()
    os._exit(0)


def _count_writes(command: Run, state: Any) -> None:
    """Every write of a lake passes `Lake.attempt`: that is where it happens."""
    from pipelines.lake import Lake

    attempt, fenced = Lake.attempt, Lake._fenced

    def counted(self: Lake, what: str, action: Callable[[int], Any]) -> Any:
        state[0] += 1
        mine = state[0] == command.at
        if mine and command.when == "before":
            _happen(command)
        result = attempt(self, what, action)
        if mine and command.when == "after":
            _happen(command)
        return result

    def admitted(self: Lake, table: str) -> Any:
        dataset = fenced(self, table)
        if state[0] == command.at and command.when == "in":
            _happen(command)
        return dataset

    Lake.attempt, Lake._fenced = counted, admitted  # type: ignore[method-assign]


def _happen(command: Run) -> None:
    import psutil

    from pipelines.lake import lease

    if command.fate == "pause":
        os.killpg(0, signal.SIGSTOP)
    elif command.fate == "die":
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(DIED)
    elif command.fate == "worker":
        actors = [p for p in psutil.Process().children(recursive=True) if "ray::MapWorker" in _command_line(p)]
        for actor in actors[:1]:
            actor.kill()
    elif not os.path.exists(command.joined):
        Path(f"{command.joined}.waiting").touch()
        update = lease._update

        def refused(*args: Any) -> int:
            if os.path.exists(command.joined):
                return update(*args)
            raise OSError("403 Forbidden")

        if command.fate == "cut":
            lease._update = refused
        while not os.path.exists(command.joined):
            threading.Event().wait(0.05)


def _command_line(process: Any) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""


def _set_machine(command: Run) -> None:
    import socket

    from pipelines.lake import lease

    lease.EXPIRES_S, lease.HEARTBEAT_S = command.expires_s, command.expires_s / 6
    if command.host:
        socket.gethostname = lambda: command.host  # type: ignore[assignment]
    if command.skew:
        clock = time.time
        time.time = lambda: clock() + command.skew  # type: ignore[assignment]
