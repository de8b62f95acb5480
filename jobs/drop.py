"""`vfm drop`: removes the columns of an op, or of a model, from a lake; only metadata is written."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import LakeOption
from pipelines.lake import Lake


def command(
    lake: LakeOption,
    op: Annotated[str | None, typer.Option(help="Name of the op whose columns go.")] = None,
    model: Annotated[str | None, typer.Option(help="Spec of the model whose columns go.")] = None,
) -> int:
    """Removes columns of frames that an op or a model filled. Earlier versions of the table keep them until vfm index."""
    from pipelines.process.backfill import drop_columns

    columns = drop_columns(Lake.open(lake), op, model)
    print(f"dropped {', '.join(columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
