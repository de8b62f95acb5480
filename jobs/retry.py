"""`vfm retry`: runs the quarantined assets again, alone; or the frames that one op failed on."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption, MetricsOption, RecipeOption, SetOption, run_process


def command(
    lake: LakeOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    op: Annotated[str | None, typer.Option(help="Instead: the frames that this op of the recipe failed on.")] = None,
    as_json: JsonOption = False,
    metrics_file: MetricsOption = None,
) -> int:
    """Runs what is in quarantine under this recipe again; what succeeds leaves it."""
    if op is None:
        return run_process(lake, recipe, set_ or [], as_json, retry=True, metrics_file=metrics_file)
    from pipelines.lake import Lake
    from pipelines.process.backfill import forget_errors

    count = forget_errors(Lake.open(lake), op)
    print(f"{count} frames of op {op} are tried again", file=sys.stderr)
    return run_process(lake, recipe, set_ or [], as_json, retry=False, metrics_file=metrics_file)


if __name__ == "__main__":
    sys.exit(run(command))
