"""`vfm detect`: find objects by text in pictures; no lake needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jobs.cli import run
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.evaluate.files import PICTURES, check_place, write_picture
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.evaluate.sheet import contact_sheet
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.models.shipped import DEFAULT_DETECTOR


def command(
    pictures: Annotated[list[Path], typer.Argument(help="Image files.")],
    prompts: Annotated[str, typer.Option(help="What to find: 'person . red bicycle .'")],
    model: Annotated[str, typer.Option(help="Detector spec; see vfm models.")] = DEFAULT_DETECTOR,
    threshold: Annotated[float | None, typer.Option(help="Least score; the model family's own by default.")] = None,
    tiles: Annotated[
        int | None,
        typer.Option(help="Look at overlapping tiles of so many pixels too: small things in large pictures."),
    ] = None,
    tile_overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbours have in common.")] = 0.25,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="A box under every prompt that it scores enough for: yolo-world.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    sheet: Annotated[Path | None, typer.Option(help="Also draw the boxes, on this picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a picture.")] = False,
) -> int:
    """Prints boxes (xyxy, pixels), scores and the one prompt that each belongs to. Exit code 1 when a picture is bad."""
    from vfm_ops.detect import load_detector
    from vfm_ops.detect.tiles import Tiles

    check_place(sheet, PICTURES)
    sliced = None if tiles is None else Tiles(tiles, tile_overlap)
    detector = load_detector(model, device=device, multi_label=multi_label)
    drawn, captions, bad = [], [], 0
    for path, rgb in read_pictures(pictures):
        if isinstance(rgb, MediaError):
            print(f"error: {rgb}", file=sys.stderr)
            bad += 1
            continue
        found = detector.detect([rgb], prompts, thresholds=threshold, tiles=sliced)[0]
        boxes = [
            {"label": label, "score": round(float(score), 4), "box": [round(float(v), 2) for v in box]}
            for label, score, box in zip(found.labels, found.scores, found.boxes)
        ]
        print(json.dumps({"picture": str(path), "boxes": boxes}) if as_json else _lines(path, boxes))
        drawn.append(draw_objects(rgb, boxes))
        captions.append(path.name)
    if sheet and drawn:
        write_picture(sheet, contact_sheet(drawn, captions, cell=(480, 360)))
        print(f"wrote {sheet}", file=sys.stderr)
    if bad:
        print(f"{bad} pictures could not be read", file=sys.stderr)
    return 1 if bad else 0


def read_pictures(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray | MediaError]]:
    """Each file's upright RGB pixels, uint8 (H, W, 3), or what is wrong with it; decoded in a killable process."""
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise UsageError(f"there is no file {missing[0]}")
    settings = DecodeSettings(jpeg=False, pixels=True)
    with Sandbox(settings) as sandbox:
        for path, frame in zip(paths, sandbox.images(MediaSource(str(p)) for p in paths)):
            if isinstance(frame, MediaError):
                yield path, frame
            elif frame.pixels is not None:
                yield path, frame.pixels


def _lines(path: Path, boxes: list[dict]) -> str:
    head = f"{path}: {len(boxes)} found"
    return "\n".join([head, *(f"  {b['score']:.3f}  {b['label']:<24} {b['box']}" for b in boxes)])


if __name__ == "__main__":
    sys.exit(run(command))
