"""`vfm world`: generate images and videos with perfect ground truth, as a corpus that the pipeline treats as any other."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from vfm_ops.errors import UsageError


def command(
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    images: Annotated[int, typer.Option(min=0, help="Number of images.")] = 0,
    videos: Annotated[int, typer.Option(min=0, help="Number of videos.")] = 0,
    seed: Annotated[int, typer.Option(help="All content follows from it.")] = 0,
    split: Annotated[
        str, typer.Option(help="train, or heldout: other colour-texture-shape combinations, other backgrounds.")
    ] = "train",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "320x240",
    objects: Annotated[str, typer.Option(help="Objects of an image or shot, as FEWEST-MOST.")] = "2-4",
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 60,
    shots: Annotated[int, typer.Option(min=1, help="Shots of a video.")] = 1,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of a video.")] = 15,
) -> int:
    """Writes JPEG and mp4 files with captions, boxes, masks, tracks and shots (COCO, YouTube-VIS, MOT)."""
    from vfm_ops.world.corpus import write_corpus
    from vfm_ops.world.scene import World

    if not images and not videos:
        raise UsageError("nothing to write: give --images N, --videos N or both")
    if shots > frames:
        raise UsageError(f"{shots} shots do not fit in {frames} frames; give fewer --shots or more --frames")
    width, height = _pair(size, "x", "--size", "320x240")
    world = World(seed=seed, split=split, height=height, width=width, objects=_pair(objects, "-", "--objects", "2-4"))
    started = time.perf_counter()
    write_corpus(world, out, images, videos, frames, shots, fps, _progress(images, videos))
    seconds = time.perf_counter() - started
    print(f"wrote {images} images and {videos} videos ({videos * frames} frames) to {out} in {seconds:.1f} s")
    return 0


def _pair(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    parts = text.lower().split(separator)
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"{option} is {text!r}: write two whole numbers like {example}")
    return int(parts[0]), int(parts[1])


def _progress(images: int, videos: int):
    totals, started = {"images": images, "videos": videos}, time.perf_counter()

    def say(what: str, n: int) -> None:
        if sys.stderr.isatty() and (n % 20 == 0 or n == totals[what]):
            print(f"\r{what}: {n}/{totals[what]}, {time.perf_counter() - started:.0f} s ", end="", file=sys.stderr)
            if n == totals[what]:
                print(file=sys.stderr)

    return say


if __name__ == "__main__":
    sys.exit(run(command))
