"""Progress of a long command on stderr, peak memory of all its processes, and the summary at its end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.process import RunSummary
    from pipelines.process.commit import Committer
    from pipelines.process.commit import Progress as Step

LINE_EVERY_S = 30.0
LEAST_BAR = 10  # characters; a shorter bar says nothing
SAMPLE_S = 4.0  # a sample walks through the pages of every process


class PeakMemory:
    """Samples the proportional memory of this process and all that it started. `peak_mb` is the largest sum seen.

    Proportional (PSS) counts a shared page once, so that workers which share libraries or the object store are not counted
    twice.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peak-memory")

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(SAMPLE_S)
            self.peak_mb = max(self.peak_mb, tree_memory_mb(psutil.Process()))


def tree_memory_mb(root: psutil.Process) -> float:
    """Proportional memory of a process and its descendants, in MB; a process that ends meanwhile counts nothing."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total / 2**20


class LineColumn(ProgressColumn):
    """The whole line of a task: what its field `parts` gives when called, and a bar where room is left."""

    def render(self, task: Task) -> FittedLine:
        """See FittedLine."""
        return FittedLine(task.fields["parts"](), task.total, task.completed)


@dataclass(frozen=True)
class FittedLine:
    """Parts by importance, as many as the terminal's width holds, and a bar in what is left of it."""

    parts: Sequence[str]
    total: float | None
    completed: float

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """All of the width."""
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The text, then the bar."""
        text = fitting(self.parts, options.max_width)
        room = options.max_width - len(text) - 2
        if room < LEAST_BAR:
            yield Text(text, no_wrap=True)
            return
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(text, no_wrap=True), ProgressBar(self.total, self.completed, width=min(room, 40)))
        yield line


def fitting(parts: Sequence[str], width: int) -> str:
    """The parts joined, without those at the end that a line of `width` characters does not hold."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def span(seconds: float) -> str:
    """A duration as a person reads it: 42 s, 7 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Steps:
    """Which step a command is at: on a terminal in place, elsewhere one line every half minute at most."""

    def __init__(self, verb: str, every_s: float = LINE_EVERY_S) -> None:
        self.verb, self.every_s = verb, every_s
        self._console = Console(stderr=True)
        self._status = self._console.status(verb)
        self._said = time.monotonic()

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def __call__(self, step: str) -> None:
        """Called as a step begins."""
        if self._console.is_terminal:
            self._status.update(f"{self.verb} {step}")
        elif time.monotonic() - self._said >= self.every_s:
            self._said = time.monotonic()
            print(f"{self.verb} {step}", file=sys.stderr, flush=True)


class RunProgress:
    """How far a run is: a bar on a terminal, elsewhere one line every half minute. Ends with a summary."""

    def __init__(self, verb: str, every_s: float = LINE_EVERY_S) -> None:
        self.verb, self.every_s = verb, every_s
        self.memory = PeakMemory()
        console = Console(stderr=True)
        self._bar = Progress(LineColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(verb, total=None, parts=self._parts)
        self._started = time.monotonic()
        self._state: tuple[Committer | Step, int] | None = None  # None until the first result
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True, name="progress")

    def __enter__(self) -> RunProgress:
        self.memory.__enter__()
        self._bar.start()
        if self._bar.disable:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._bar.stop()
        self.memory.__exit__(*error)

    def __call__(self, committer: Committer | Step, total: int) -> None:
        """Called by the pipeline after each result."""
        self._state = committer, total
        self._bar.update(self._task, total=total, completed=committer.settled)

    def _parts(self) -> tuple[str, ...]:
        """The fields of the line, the most important first: a narrow terminal shows only these."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        if self._state is None:
            return f"{self.verb}: starting", f"{span(elapsed)} so far"
        committer, total = self._state
        c = committer.counts
        rate = committer.settled / elapsed
        left = f"{span((total - committer.settled) / rate)} left" if rate else "time left unknown"
        busy = " ".join(f"{stage} {seconds:.0f} s" for stage, seconds in committer.seconds.items())
        return (
            f"{committer.op or self.verb}: {committer.settled} of {total} {committer.unit}",
            left,
            f"{rate:.1f} {committer.unit}/s",
            f"{c['quarantined']} quarantined",
            f"{c['frames']} frames",
            f"{span(elapsed)} so far",
            *([f"busy: {busy}"] if busy else []),
        )

    def _print_lines(self) -> None:
        while not self._stop.wait(self.every_s):
            print("  ".join(self._parts()), file=sys.stderr, flush=True)

    def finish(self, summary: RunSummary, as_json: bool) -> int:
        """Prints the summary on stdout; the last line counts what is in quarantine. Returns 1 when anything is, else 0.

        Not only what this run put there: a run that was killed before it could say so put it there, too.
        """
        c = summary.counts
        began = psutil.Process().create_time()  # when the shell started it: imports count
        first_commit_s = summary.first_commit_at and summary.first_commit_at - began
        facts = {
            "run_id": summary.run_id,
            "in_quarantine": summary.in_quarantine,
            **{k: c.get(k, 0) for k in ("assets", "frames", "shots", "detections", "tracks", "dropped", "quarantined")},
            "seconds": round(summary.seconds, 2),
            "assets_per_s": round(c.get("assets", 0) / summary.seconds, 2),
            "steady_frames_per_s": summary.steady_rate and round(summary.steady_rate, 2),
            "first_commit_s": first_commit_s and round(first_commit_s, 2),
            "efficiency": summary.efficiency and round(summary.efficiency, 3),
            "bottleneck": summary.bottleneck,
            "advice": summary.advice,
            "stage_seconds": {k: round(v, 2) for k, v in summary.stages.items()},
            "peak_memory_mb": round(self.memory.peak_mb),
        }
        if as_json:
            print(json.dumps(facts))
        elif not c.get("assets"):
            filled = c.get("backfilled")
            gave = f"models and ops gave {filled} values in {summary.seconds:.1f} s" if filled else ""
            print(f"no asset is pending; {gave}" if filled else "nothing is pending")
        else:
            efficiency = f", efficiency {summary.efficiency:.0%}" if summary.efficiency else ""
            print(
                f"{facts['assets']} assets, {facts['frames']} frames, {facts['shots']} shots in {summary.seconds:.1f} s "
                f"({facts['assets_per_s']} assets/s{efficiency}); first rows after {first_commit_s:.1f} s; "
                f"peak memory {self.memory.peak_mb:.0f} MB\n{summary.advice or ''}".rstrip()
            )
        if summary.in_quarantine:
            print(
                f"{summary.in_quarantine} quarantined ({c.get('quarantined', 0)} by this run): vfm info says why, vfm retry "
                "runs them again",
                file=sys.stderr if as_json else sys.stdout,
            )
        return 1 if summary.in_quarantine else 0
