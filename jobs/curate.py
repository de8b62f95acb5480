"""`vfm curate`: from a raw lake to a balanced, deduplicated, explained selection; the same command again does what is new."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run
from jobs.process import JsonOption, LakeOption, SetOption
from pipelines.curation.recipe import load_curation_recipe
from pipelines.lake import Lake
from vfm_ops.allocator import share_one_heap

RecipeOption = Annotated[str | None, typer.Option(help="YAML file; without it, the defaults of recipes/curate.yaml.")]

# Of arguments that are called otherwise than here (`jobs.cli.in_options`).
OPTIONS_OF_ARGUMENTS = {"name": "--selection"}


def command(
    lake: LakeOption,
    recipe: RecipeOption = None,
    selection: Annotated[str, typer.Option(help="Name of the selection.")] = "curated",
    set_: SetOption = None,
    full: Annotated[bool, typer.Option("--full", help="Decide every item anew, also those of an earlier run.")] = False,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Decide the stored selection again from its manifest, and compare.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Deduplicates, decontaminates, clusters, balances and explains. A second run decides new items only."""
    share_one_heap()
    plan = load_curation_recipe(recipe, set_ or [])
    target = Lake.open(lake)
    if reproduce:
        return _reproduce(target, selection, as_json)
    from jobs.progress import PeakMemory
    from pipelines.curation import curate

    console = Console(stderr=True)

    def progress(step: str, left: int) -> None:
        if console.is_terminal:
            console.print(f"  {step}: {left} items", style="dim")

    with PeakMemory() as memory:
        summary = curate(target, plan, selection, full=full, progress=progress)
    manifest = summary.manifest
    facts = {
        "selection": manifest.selection,
        "generation": manifest.generation,
        "mode": "unchanged" if summary.unchanged else manifest.mode,
        "items": manifest.items,
        "kept": manifest.kept,
        "reasons": manifest.tally,
        "changes": manifest.changes,
        "sets": manifest.sets,
        "funnel": manifest.funnel,
        "key": manifest.key,
        "seconds": round(summary.seconds, 2),
        "stage_seconds": {k: round(v, 2) for k, v in summary.stages.items()},
        "peak_memory_mb": round(memory.peak_mb),
    }
    print(json.dumps(facts) if as_json else _text(facts))
    return 0


def _text(facts: dict) -> str:
    if facts["mode"] == "unchanged":
        return f"nothing is new: {facts['selection']} keeps {facts['kept']} of {facts['items']} items"
    lines = [f"{facts['selection']}, generation {facts['generation']} ({facts['mode']}):"]
    width = max(len(k) for k in facts["reasons"])
    lines += [f"  {kind.replace('_', ' '):<{width}}  {count}" for kind, count in facts["reasons"].items()]
    if facts["changes"]:
        lines.append("changed: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in facts["changes"].items()))
    slowest = max(facts["stage_seconds"], key=facts["stage_seconds"].__getitem__)
    lines.append(
        f"kept {facts['kept']} of {facts['items']} items in {facts['seconds']} s; slowest step: {slowest}; "
        f"peak memory {facts['peak_memory_mb']} MB"
    )
    return "\n".join(lines)


def _reproduce(lake: Lake, selection: str, as_json: bool) -> int:
    from pipelines.curation import reproduce

    same, manifest = reproduce(lake, selection)
    if as_json:
        print(json.dumps({"selection": selection, "generation": manifest.generation, "identical": same}))
    elif same:
        print(f"reproduced: {selection} generation {manifest.generation} is identical, row by row")
    else:
        print(
            f"{selection} generation {manifest.generation} came out differently: an evaluation or seed set changed, or "
            f"the code did (made by {manifest.code_version})",
            file=sys.stderr,
        )
    return 0 if same else 3


if __name__ == "__main__":
    sys.exit(run(command))
