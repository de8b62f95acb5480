"""`vfm bench soak`: a lake that grows, is curated, searched and served at once, for as long as is asked: does memory grow, does
anything fail that nobody made fail, is a process left behind.

Commands run one after another and at once, as people give them: one that finds another writing waits and is given again.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.bench.media import write_jpegs
from jobs.bench.process import EMBED_ONLY
from jobs.bench.scale import some_frame
from jobs.bench.serve import Server, serving
from jobs.bench.serve_load import ask, post
from pipelines.lake import Lake
from pipelines.search import Query, search
from vfm_ops.models.shipped import DEFAULT_EMBEDDER

Row = dict[str, Any]
MINUTES = 40.0
AT_FIRST, AT_A_TIME = 200, 20  # pictures
EVERY_S = 5.0  # memory is looked at
SETTLED = 0.25  # share of the time after which memory counts: caches are full by then
BUSY = "is being written by run"
WAIT_S = 1.0
MARK = "VFM_SOAK"


def measure(quick: bool, minutes: float | None = None) -> list[Row]:
    """Rows: what, ours, bar, note. minutes: how long; 40, or one where it is only to be seen that it runs."""
    minutes = minutes or (1.0 if quick else MINUTES)
    os.environ[MARK] = uuid.uuid4().hex
    try:
        with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
            soak = Soak(Path(folder))
            soak.begin()
            with serving("jobs.serve", "--lake", soak.lake.root, "--embed", DEFAULT_EMBEDDER) as server:
                soak.run(server, minutes)
        return [*soak.rows(minutes), _left_behind()]
    finally:
        del os.environ[MARK]


@dataclass
class Soak:
    """What runs, and what came of it. memory: (seconds, MB) by who holds it. errors: by what failed."""

    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(str(self.folder / "lake"))
        self.over = threading.Event()
        self.pool = write_jpegs(self.folder / "pool", AT_FIRST)
        (self.folder / "pictures").mkdir()

    def begin(self) -> None:
        """A lake to serve."""
        self._add(AT_FIRST)
        for argv in (["ingest", str(self.folder / "pictures")], ["process", *EMBED_ONLY], ["curate"]):
            self._command(argv[0], *argv[1:], "--lake", self.lake.root)

    def run(self, server: Server, minutes: float) -> None:
        """Does everything at once, and looks at memory meanwhile."""
        works: list[Callable[[], None]] = [self._grow, self._curate, lambda: self._ask(server), self._search]
        threads = [threading.Thread(target=self._again, args=(work,), daemon=True) for work in works]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while (now := time.monotonic() - began) < 60 * minutes:
            self.memory.setdefault("the server", []).append((now, server.memory_mb()))
            self.memory.setdefault("a process that searches", []).append(
                (now, psutil.Process().memory_full_info().uss / 2**20)
            )
            time.sleep(EVERY_S)
        self.over.set()
        for thread in threads:
            thread.join()

    def rows(self, minutes: float) -> list[Row]:
        """What was found."""
        rows = []
        for who, samples in self.memory.items():
            late = np.array([s for s in samples if s[0] >= SETTLED * 60 * minutes])
            slope = float(np.polyfit(late[:, 0] / 60, late[:, 1], 1)[0])
            note = f"{late[0, 1]:.0f} MB at first, {late[-1, 1]:.0f} at last, in {minutes:g} minutes"
            rows.append({"what": f"{who}: MB more a minute", "ours": slope, "bar": "under 1", "note": note})
        did = ", ".join(f"{count:,} {what}" for what, count in sorted(self.done.items()))
        failed = ", ".join(f"{count} x {what}" for what, count in self.errors.items())
        rows.append(
            {
                "what": "errors",
                "ours": self.errors.total(),
                "bar": "0",
                "note": f"{did}" + (f"; {failed}" if failed else ""),
            }
        )
        return rows

    def _again(self, work: Callable[[], None]) -> None:
        while not self.over.is_set():
            try:
                work()
            except Exception as e:  # whatever it is, it is what is looked for
                self.errors[f"{type(e).__name__}: {str(e)[:100]}"] += 1
                self.over.wait(WAIT_S)

    def _grow(self) -> None:
        self._add(AT_A_TIME)
        self._command("ingest", str(self.folder / "pictures"), "--lake", self.lake.root)
        self._command("process", *EMBED_ONLY, "--lake", self.lake.root)
        self.done["pictures"] += AT_A_TIME

    def _curate(self) -> None:
        self._command("curate", "--lake", self.lake.root)
        self.done["curations"] += 1
        self.over.wait(10)

    def _ask(self, server: Server) -> None:
        frame = some_frame(self.lake)
        answers = ask(server.port, [post("search", {"frame_id": frame, "limit": 10}, server.port)] * 20)
        self.done["answers"] += len(answers)
        for answer in answers:
            if answer.status != 200:
                self.errors[f"HTTP {answer.status}: {answer.body[:100]!r}"] += 1
        self.over.wait(0.2)

    def _search(self) -> None:
        frame = some_frame(self.lake)
        assert search(self.lake, Query(frame_id=frame), k=10).hits
        self.done["searches"] += 1
        self.over.wait(0.2)

    def _add(self, count: int) -> None:
        """Pictures under new names."""
        start = sum(1 for _ in (self.folder / "pictures").iterdir())
        for i, path in zip(range(start, start + count), itertools.cycle(self.pool)):
            (self.folder / "pictures" / f"{i:07d}.jpg").hardlink_to(path)

    def _command(self, *argv: str) -> None:
        """A command, given again while another one writes."""
        while True:
            run = subprocess.run([sys.executable, "-m", "jobs.cli", *argv], capture_output=True, text=True)
            if run.returncode in (0, 1):
                return
            if BUSY not in run.stderr:
                raise RuntimeError(f"vfm {argv[0]} ended with {run.returncode}: {run.stderr.strip()[-200:]}")
            if self.over.wait(WAIT_S):
                return


def _left_behind() -> Row:
    """Processes that were started here and still run a minute later."""

    def left() -> list[str]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                    found.append(" ".join(process.cmdline())[:80])
        return found

    end = time.monotonic() + 60
    while (names := left()) and time.monotonic() < end:
        time.sleep(1)
    return {"what": "processes left behind", "ours": len(names), "bar": "0", "note": "; ".join(names)}
