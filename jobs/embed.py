"""`vfm embed`: one more model's columns for a lake that already has frames; no JPEG is rewritten."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import LakeOption, MetricsOption
from jobs.progress import RunProgress
from pipelines.lake import Lake


def command(
    lake: LakeOption,
    model: Annotated[str, typer.Option(help="Model spec, family:name-or-path; see vfm models.")],
    runtime: Annotated[str, typer.Option(help="auto, torch or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, exact, bf16 or fp16.")] = "auto",
    preprocess: Annotated[str, typer.Option(help="fast, or exact: the model's own filter.")] = "fast",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    patch_tokens: Annotated[bool, typer.Option(help="Also a column of patch tokens.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    metrics_file: MetricsOption = None,
) -> int:
    """Embeds every stored frame that has no vector of this model yet. A killed run goes on where it stopped."""
    from pipelines.process.recipe import Resources
    from pipelines.settings import validate

    settings = {
        "model": model,
        "runtime": runtime,
        "precision": precision,
        "preprocess": preprocess,
        "dtype": dtype,
        "patch_tokens": patch_tokens,
    }
    resources = validate(Resources, {"device": device}, "vfm embed")
    target = Lake.open(lake)
    from pipelines.process.backfill import embed_lake
    from pipelines.process.commit import Progress

    counts: Counter[str] = Counter()
    with RunProgress("embed") as progress:

        def report(done: int, total: int) -> None:
            progress(Progress(model, "fragments", done, counts, counts), total)

        filled = embed_lake(target, settings, resources, report, metrics_file)
    print(f"{filled} frames embedded with {model}" if filled else f"every frame already has a vector of {model}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
