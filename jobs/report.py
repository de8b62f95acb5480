"""`vfm report`: one self-contained HTML file about a lake and a selection of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption
from pipelines.lake import Lake


def command(
    lake: LakeOption,
    selection: Annotated[str | None, typer.Option(help="Selection to show; the only one, where there is one.")] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    as_json: JsonOption = False,
) -> int:
    """Writes funnel, embedding map, contact sheets, duplicates, shots, quality, quarantine and runs into one file."""
    target = Lake.open(lake)
    from pipelines.reporting import write_report

    size = write_report(target, out, selection)
    print(json.dumps({"out": str(out), "bytes": size}) if as_json else f"wrote {out} ({size / 2**20:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
