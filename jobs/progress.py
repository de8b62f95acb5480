"""Progress of a long command on stderr, peak memory of all its processes, and the summary at its end."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from pipelines.commit import Committer
    from pipelines.process import RunSummary

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


class RunProgress:
    """A bar of assets with rate, frames and quarantine, on a terminal; silent elsewhere. Ends with a summary."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.memory = PeakMemory()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(verb, total=None, rate="starting")

    def __enter__(self) -> RunProgress:
        self.memory.__enter__()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self.memory.__exit__(*error)

    def __call__(self, committer: Committer, total: int) -> None:
        """Called by the pipeline after each result."""
        c = committer.counts
        elapsed = self._bar.tasks[0].elapsed or 1e-9
        stages = " ".join(f"{k} {v:.0f}s" for k, v in committer.seconds.items())
        text = f"{c['assets'] / elapsed:.1f} assets/s  {c['frames']} frames  {c['quarantined']} quarantined  {stages}"
        self._bar.update(self._task, total=total, completed=c["assets"], rate=text)

    def finish(self, summary: RunSummary, as_json: bool) -> int:
        """Prints the summary on stdout. The last line counts the quarantined when there are any."""
        c = summary.counts
        quarantined = c.get("quarantined", 0)
        began = psutil.Process().create_time()  # when the shell started it: imports count
        first_commit_s = summary.first_commit_at and summary.first_commit_at - began
        facts = {
            "run_id": summary.run_id,
            **{k: c.get(k, 0) for k in ("assets", "frames", "shots", "detections", "tracks", "dropped", "quarantined")},
            "seconds": round(summary.seconds, 2),
            "assets_per_s": round(c.get("assets", 0) / summary.seconds, 2),
            "steady_frames_per_s": summary.steady_rate and round(summary.steady_rate, 2),
            "first_commit_s": first_commit_s and round(first_commit_s, 2),
            "efficiency": summary.efficiency and round(summary.efficiency, 3),
            "bottleneck": summary.bottleneck,
            "stage_seconds": {k: round(v, 2) for k, v in summary.stages.items()},
            "peak_memory_mb": round(self.memory.peak_mb),
        }
        if as_json:
            print(json.dumps(facts))
        elif not c.get("assets"):
            print("nothing is pending")
        else:
            efficiency = f", efficiency {summary.efficiency:.0%}" if summary.efficiency else ""
            print(
                f"{facts['assets']} assets, {facts['frames']} frames, {facts['shots']} shots in {summary.seconds:.1f} s "
                f"({facts['assets_per_s']} assets/s{efficiency}); busiest stage: {summary.bottleneck}; "
                f"first rows after {first_commit_s:.1f} s; peak memory {self.memory.peak_mb:.0f} MB"
            )
        if quarantined:
            print(
                f"{quarantined} quarantined: see the quarantine table, and vfm retry",
                file=sys.stderr if as_json else sys.stdout,
            )
        return 1 if quarantined else 0
