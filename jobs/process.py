"""`vfm process`: pending assets to committed tables, in one streaming pass. `vfm retry` is the same over the quarantine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli import run
from jobs.progress import RunProgress
from pipelines.lake import Lake
from pipelines.process.recipe import Recipe, load_recipe
from vfm_ops.allocator import share_one_heap

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
    plan = load_recipe(recipe, set_ or [])
    return run_process(Lake.open(lake), plan, as_json, metrics_file)


def run_process(lake: Lake, recipe: Recipe, as_json: bool, metrics_file: str | None, retry: bool | str = False) -> int:
    """Shared by `process` and `retry`. Returns 1 when something was quarantined, else 0."""
    from pipelines.process import process  # Ray is imported only for a command that is right

    share_one_heap()  # this process plans and commits: what its scans free, the next one takes
    with RunProgress("retry" if retry else "process") as progress:
        summary = process(lake, recipe, retry=retry, progress=progress, metrics_file=metrics_file)
    return progress.finish(summary, as_json)


if __name__ == "__main__":
    sys.exit(run(command))
