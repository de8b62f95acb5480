"""`vfm verify`: keys, references, settlement, counts and coverage of a lake; with --deep, its pictures and vectors too."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.cli import run
from pipelines.lake import Lake, verify_lake
from vfm_ops.allocator import share_one_heap


def command(
    lake: Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also decode every stored picture, and compute a sample of the vectors again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Proves that a lake is whole. Exit code 0 when it is, 3 when it isn't."""
    target = Lake.open(lake)
    share_one_heap()
    report = verify_lake(target)
    if deep:
        from pipelines.process.verify import verify_deep

        report.violations += verify_deep(target)
    if as_json:
        print(json.dumps({"counts": report.counts, "violations": report.violations, "pending": report.pending}))
    else:
        print(", ".join(f"{n} {what}" for what, n in report.counts.items()))
        for sentence in report.pending:
            print(f"pending: {sentence}")
        for violation in report.violations:
            print(f"violated: {violation}", file=sys.stderr)
        if not report.violations:
            print(
                "verified: keys are unique, references hold, every asset is settled once, counts agree, "
                "no value of what was done is missing" + (", pictures decode and vectors are theirs" if deep else "")
            )
    return 3 if report.violations else 0


if __name__ == "__main__":
    sys.exit(run(command))
