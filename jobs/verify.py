"""`vfm verify`: every asset is in the ledger or in the quarantine, never both, and the counts agree."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.cli import run
from pipelines.lake import Lake, verify_lake


def command(
    lake: Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Proves that a lake is whole. Exit code 0 when it is, 3 when it isn't."""
    report = verify_lake(Lake.open(lake))
    if as_json:
        print(json.dumps({"counts": report.counts, "violations": report.violations}))
    else:
        print(", ".join(f"{n} {what}" for what, n in report.counts.items()))
        for violation in report.violations:
            print(f"violated: {violation}", file=sys.stderr)
        if not report.violations:
            print("verified: every asset is settled exactly once and the counts agree")
    return 3 if report.violations else 0


if __name__ == "__main__":
    sys.exit(run(command))
