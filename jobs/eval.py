"""`vfm eval`: a lake's detections or tracks against ground truth, through pycocotools and TrackEval."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption
from jobs.storing import AuthorFilter
from pipelines.lake import Lake
from vfm_ops.errors import UsageError


def command(
    lake: LakeOption,
    truth: Annotated[
        Path | None, typer.Option(help="COCO file (pictures) or YouTube-VIS file (videos); matched by file name.")
    ] = None,
    annotations: Annotated[bool, typer.Option("--annotations", help="The truth is the lake's annotations.")] = False,
    author: AuthorFilter = None,
    as_json: JsonOption = False,
) -> int:
    """Prints mAP for pictures; HOTA, IDF1, MOTA and J&F for videos. What the figures leave out goes to stderr."""
    from pipelines.reporting.evaluate import evaluate, evaluate_by_annotations

    if (truth is None) != annotations:
        raise UsageError("say what is true: --truth FILE, or --annotations")
    if author is not None and not annotations:
        raise UsageError("--author goes with --annotations")
    opened = Lake.open(lake)
    scores = evaluate(opened, truth) if truth else evaluate_by_annotations(opened, author)
    if as_json:
        # NaN, of a size that no object has, is no JSON.
        print(json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in scores.items()}))
        return 0
    for note in scores["notes"]:
        print(f"note: {note}", file=sys.stderr)
    figures = {k: v for k, v in scores.items() if isinstance(v, int | float) and not math.isnan(v)}
    print("\n".join(f"{name:>14}  {value:.4g}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
