"""`vfm ingest`: images and videos, wherever they lie, into a lake's assets. Run again, it adds what is new or changed."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.cli import in_options, run
from pipelines.sources import IngestReport, ListingOptions, ingest
from vfm_ops.allocator import share_one_heap
from vfm_ops.errors import UsageError


def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SRC...",
            help="Directories, globs, files, tar or parquet files, Lance tables, @LIST files; paths or URLs.",
        ),
    ] = None,
    lake: Annotated[str, typer.Option(help="Directory or object-store prefix; made when it is not there.")] = "",
    lists: Annotated[list[str] | None, typer.Option("--list", help="File of paths and URLs, one a line.")] = None,
    captions: Annotated[
        str | None, typer.Option(help="sidecar (NAME.txt beside NAME.jpg) or column:NAME of parquet and Lance sources.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="folder (the parent directory's name) or column:NAME.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of parquet and Lance sources with bytes or paths; found by itself.")
    ] = None,
    max_members: Annotated[int, typer.Option(help="Most members of one archive.")] = 10_000_000,
    max_member_bytes: Annotated[int, typer.Option(help="Most bytes of one archive member.")] = 64 << 30,
    threads: Annotated[int, typer.Option(help="Directories and archives listed at once.")] = 8,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Take files outside a source that its links or tables lead to.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Lists sources into a lake. Exit code 0, or 1 when something was refused or can't be read (counts come last)."""
    if not lake:
        raise UsageError("name the lake: --lake DIRECTORY, or --lake s3://bucket/prefix")
    options = ListingOptions(captions, labels, column, max_members, max_member_bytes, threads, allow_outside)
    share_one_heap()
    report = run_ingest(sources or [], lake, lists or [], options)
    print(json.dumps(report.as_dict()) if as_json else _summary(report))
    return tell_left_out(report, as_json)


def run_ingest(sources: list[str], lake: str, lists: list[str], options: ListingOptions) -> IngestReport:
    """`ingest`, with its progress on a terminal."""
    with _IngestProgress() as progress:
        return ingest(sources, lake, lists=lists, options=options, progress=progress)


def ingest_first(sources: list[str], lake: str, as_json: bool) -> int:
    """What a command does that is given sources. as_json: stdout is for the command's own. Returns as `vfm ingest` does."""
    report = run_ingest(sources, lake, [], ListingOptions())
    print(f"ingested: {_summary(report)}", file=sys.stderr if as_json else sys.stdout)
    return tell_left_out(report, as_json)


def tell_left_out(report: IngestReport, as_json: bool) -> int:
    """Says what was not ingested, and why. Returns 1 where there is such, else 0."""
    tally = report.tally
    for note in tally.notes:
        print(f"skipped: {in_options(command, note)}", file=sys.stderr)
    for problem in tally.problems:
        print(f"not ingested: {in_options(command, problem)}", file=sys.stderr)
    for count, what in ((tally.refused.total(), "refused"), (tally.unreadable, "unreadable")):
        if count:
            print(f"{count} {what}: not ingested", file=sys.stderr if as_json else sys.stdout)
    return 1 if tally.left_out else 0


def _summary(report: IngestReport) -> str:
    facts = report.as_dict()
    skipped = sum(facts["skipped"].values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in list(facts["skipped"].items())[:4])
    parts = [f"{facts[name]} {name}" for name in ("added", "changed", "unchanged")]
    parts += [f"{facts['repeated']} named twice"] if facts["repeated"] else []
    parts += [f"{skipped} skipped ({kinds})"] if skipped else []
    parts += [f"{count} refused ({reason})" for reason, count in facts["refused"].items()]
    parts += [f"{facts['unreadable']} unreadable"]
    return f"{', '.join(parts)}; {facts['seconds']:.1f} s, {facts['files_per_s']:.0f} files/s"


class _IngestProgress:
    """Counts and rate on stderr, on a terminal; silent elsewhere. There is no total: a listing does not know its end."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("listing", total=None)

    def __enter__(self) -> _IngestProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, report: IngestReport) -> None:
        """Called by the pipeline after each batch."""
        rate = report.files / report.seconds if report.seconds else 0.0
        text = f"{report.assets} assets  {report.added} added  {report.tally.left_out} left out  {rate:.0f} files/s"
        self._bar.update(self._task, description=text)


if __name__ == "__main__":
    sys.exit(run(command))
