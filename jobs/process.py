"""`vfm process`: pending assets to committed tables, in one streaming pass. `vfm retry` is the same over the quarantine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli import run
from jobs.progress import RunProgress
from pipelines.lake import Lake
from pipelines.process.recipe import load_recipe

LakeOption = Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")]
RecipeOption = Annotated[str | None, typer.Option(help="YAML file; without it, the documented default recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, over the recipe; may be repeated.")]
MetricsOption = Annotated[
    str | None, typer.Option("--metrics-file", help="A file for Prometheus' textfile collector, such as /DIR/vfm.prom.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def command(
    lake: LakeOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    metrics_file: MetricsOption = None,
) -> int:
    """Decodes, samples, embeds, detects and tracks every pending asset. Resumes where an earlier run stopped."""
    return run_process(lake, recipe, set_ or [], as_json, retry=False, metrics_file=metrics_file)


def run_process(
    lake: str, recipe: str | None, overrides: list[str], as_json: bool, retry: bool, metrics_file: str | None = None
) -> int:
    """Shared by `process` and `retry`. Returns 1 when something was quarantined, else 0."""
    plan = load_recipe(recipe, overrides)
    target = Lake.open(lake)
    from pipelines.process import process  # Ray is imported only for a command that is right

    with RunProgress("retry" if retry else "process") as progress:
        summary = process(target, plan, retry=retry, progress=progress, metrics_file=metrics_file)
    return progress.finish(summary, as_json)


if __name__ == "__main__":
    sys.exit(run(command))
