"""`vfm export`: detections and tracks as COCO, YouTube-VIS, MOT or WebDataset files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import LakeOption
from pipelines.export import FORMATS, export
from pipelines.lake import Lake


def command(
    lake: LakeOption,
    format: Annotated[str, typer.Option(help=f"One of: {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="JSON file (coco, youtube-vis) or folder (mot, webdataset).")],
) -> int:
    """Writes annotation files that the field's own tools read."""
    counts = export(Lake.open(lake), format, out)
    print(f"{out}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
