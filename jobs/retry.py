"""`vfm retry`: runs the quarantined assets again, alone; or the frames that one op failed on."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption, MetricsOption, SetOption, run_process, worker_ahead

RecipeOption = Annotated[
    str | None, typer.Option(help="YAML file; without it, the recipe of the last run over the lake.")
]


def command(
    lake: LakeOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    op: Annotated[str | None, typer.Option(help="Instead: the frames that this op of the recipe failed on.")] = None,
    as_json: JsonOption = False,
    metrics_file: MetricsOption = None,
) -> int:
    """Runs what is in quarantine under this recipe again; what succeeds leaves it."""
    with worker_ahead():
        from pipelines.lake import Lake
        from pipelines.process.recipe import load_recipe

        target = Lake.open(lake)
        return run_process(target, load_recipe(recipe, set_ or [], target), as_json, metrics_file, retry=op or True)


if __name__ == "__main__":
    sys.exit(run(command))
