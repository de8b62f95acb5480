"""`vfm process`: pending assets to committed tables, in one streaming pass. `vfm retry` is the same over the quarantine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import run

if TYPE_CHECKING:
    from pipelines.lake import Lake
    from pipelines.process.recipe import Recipe

LakeOption = Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")]
RecipeOption = Annotated[str | None, typer.Option(help="YAML file; without it, the documented default recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, over the recipe; may be repeated.")]
MetricsOption = Annotated[
    str | None, typer.Option("--metrics-file", help="A file for Prometheus' textfile collector, such as /DIR/vfm.prom.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def command(
    lake: LakeOption,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SRC...]", help="What to ingest first, as `vfm ingest SRC...` does.")
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    metrics_file: MetricsOption = None,
) -> int:
    """Decodes, samples, embeds, detects and tracks every pending asset, of SRC too, which is ingested first.

    Resumes where an earlier run stopped.
    """
    with worker_ahead():
        from pipelines.lake import Lake
        from pipelines.process.recipe import load_recipe

        plan, left_out = load_recipe(recipe, set_ or []), 0
        if sources:
            from jobs.ingest import ingest_first

            left_out = ingest_first(sources, lake, as_json)
        return max(left_out, run_process(Lake.open(lake), plan, as_json, metrics_file))


@contextmanager
def worker_ahead() -> Iterator[None]:
    """Within, a worker imports what it will need while this process does, unless a cluster has been named to do the work."""
    from pipelines.process import worker_process

    if os.environ.get("RAY_ADDRESS"):
        yield
        return
    with worker_process.started_ahead("pipelines.process.chain"):
        yield


def run_process(lake: Lake, recipe: Recipe, as_json: bool, metrics_file: str | None, retry: bool | str = False) -> int:
    """Shared by `process` and `retry`. Returns 1 when something was quarantined, else 0."""
    from jobs.progress import RunProgress
    from pipelines.process import process  # Ray is imported only for a command that is right
    from vfm_ops.allocator import share_one_heap

    share_one_heap()  # this process plans and commits: what its scans free, the next one takes
    with RunProgress("retry" if retry else "process") as progress:
        summary = process(lake, recipe, retry=retry, progress=progress, metrics_file=metrics_file)
    return progress.finish(summary, as_json)


if __name__ == "__main__":
    sys.exit(run(command))
