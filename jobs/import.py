"""`vfm import`: annotations of other tools' files, into a lake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli import run
from jobs.process import LakeOption
from jobs.storing import AuthorOption, login_name
from pipelines.lake import Lake


def command(
    format: Annotated[Literal["coco"], typer.Argument(help="What the file is: coco, of instances.")],
    file: Annotated[Path, typer.Argument(help="The file, whose images are matched by file name.")],
    lake: LakeOption,
    author: AuthorOption = None,
) -> int:
    """Adds boxes and masks to a lake's annotations; the same file again makes new versions of them."""
    from pipelines.annotation.coco_import import import_coco

    counts = import_coco(Lake.open(lake), file, author or login_name())
    print(f"{lake}: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
