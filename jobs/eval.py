"""`vfm eval`: a lake's detections or tracks against ground truth, through pycocotools and TrackEval."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.process import JsonOption, LakeOption
from pipelines.lake import Lake


def command(
    lake: LakeOption,
    truth: Annotated[Path, typer.Option(help="COCO file (stills) or YouTube-VIS file (videos); matched by file name.")],
    as_json: JsonOption = False,
) -> int:
    """Prints mAP for stills; HOTA, IDF1, MOTA and J&F for videos."""
    from pipelines.evaluate import evaluate

    scores = evaluate(Lake.open(lake), truth)
    if as_json:
        print(json.dumps(scores))
    else:
        print("\n".join(f"{name:>14}  {value:.4g}" for name, value in scores.items() if isinstance(value, int | float)))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
