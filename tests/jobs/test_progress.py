"""What someone who waits for a run is told: on a narrow terminal, in a job's log, and at the end."""

from __future__ import annotations

import io
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.console import Console

from jobs.progress import FittedLine, RunProgress, Steps, fitting, span
from pipelines.process import RunSummary


def committer(**counts: int) -> SimpleNamespace:
    return SimpleNamespace(
        counts=Counter(counts), settled=counts["assets"], op=None, unit="assets", seconds={"decode": 3.0}
    )


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_count_and_time_left_survive_a_narrow_terminal(width):
    progress = RunProgress("process")
    progress(committer(assets=1200, frames=1200, quarantined=3), 24000)
    shown = io.StringIO()
    Console(file=shown, width=width).print(FittedLine(progress._parts(), 24000, 1200))
    line = shown.getvalue().rstrip("\n")
    assert "\n" not in line
    assert len(line) <= width
    assert "1200 of 24000 assets" in line
    assert " left" in line or width < 45
    assert ("3 quarantined" in line) == (width >= 80)


def test_a_line_keeps_the_first_parts_and_cuts_none():
    assert fitting(["ab", "cd", "ef"], 6) == "ab  cd"
    assert fitting(["ab", "cd"], 1) == ""


def test_a_jobs_log_has_a_line_with_counts_rate_time_left_and_quarantine(capsys):
    progress = RunProgress("process", every_s=0.01)
    progress(committer(assets=50, frames=60, quarantined=2), 100)
    waited = progress._stop.wait
    turns = iter([False, True])
    progress._stop.wait = lambda seconds: next(turns) if seconds == 0.01 else waited(seconds)  # type: ignore[method-assign]
    progress._print_lines()
    line = capsys.readouterr().err
    for part in ("process: 50 of 100 assets", " left", "assets/s", "2 quarantined", "60 frames"):
        assert part in line


def test_a_jobs_log_names_the_step_that_a_command_is_at(capsys):
    with Steps("comparing", every_s=0) as step:
        step("rows of frames")
    with Steps("comparing") as step:
        step("jpeg of frames")  # sooner than half a minute
    said = capsys.readouterr()
    assert (said.err, said.out) == ("comparing rows of frames\n", "")


def test_durations_read_as_a_person_says_them():
    assert [span(s) for s in (0.4, 42, 90, 3600, 12000)] == ["0 s", "42 s", "2 min", "60 min", "3 h 20 min"]


def test_what_an_earlier_killed_run_put_in_quarantine_still_ends_with_1(capsys):
    """A scheduler that reads only the exit code would take the lake for whole."""
    progress = RunProgress("process")
    summary = RunSummary("run", {"assets": 0}, 1.0, in_quarantine=4)
    assert progress.finish(summary, as_json=False) == 1
    out = capsys.readouterr().out
    assert "nothing is pending" in out
    assert "4 quarantined (0 by this run)" in out
    assert "vfm info" in out
    assert progress.finish(RunSummary("run", {"assets": 0}, 1.0), as_json=False) == 0


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"decode": 3.0, "embed": 1.0}, "decode was 75% of the work: more CPUs"),
        ({"decode": 1.0, "detect": 3.0, "write": 1.0}, "detect was 60% of the work: a GPU"),
        ({"decode": 1.0, "write": 1.5}, "write was 60% of the work: a faster disk or store"),
    ],
)
def test_the_end_says_what_would_help(stages, said):
    assert str(RunSummary("run", stages=stages).advice).startswith(said)
    assert RunSummary("run").advice is None
