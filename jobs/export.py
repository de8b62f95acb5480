"""`vfm export`: detections and tracks, or annotations, as COCO, YouTube-VIS, MOT or WebDataset files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import LakeOption
from jobs.storing import AnnotationsFlag, AuthorFilter, annotated
from pipelines.curation.selections import SelectedLake
from pipelines.lake import Lake
from pipelines.reporting.export import FORMATS, export


def command(
    lake: LakeOption,
    format: Annotated[str, typer.Option(help=f"One of: {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="JSON file (coco, youtube-vis) or folder (mot, webdataset).")],
    pictures: Annotated[
        bool, typer.Option(help="Write the pictures that the JSON file of coco and youtube-vis names, beside it.")
    ] = True,
    selection: Annotated[str | None, typer.Option(help="Only the frames that this selection keeps.")] = None,
    annotations: AnnotationsFlag = False,
    author: AuthorFilter = None,
) -> int:
    """Writes annotation files that the field's own tools read."""
    opened = Lake.open(lake)
    part = annotated(SelectedLake(opened, selection) if selection else opened, annotations, author)
    counts = export(part, format, out, pictures=pictures)
    print(f"{out}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
