"""`vfm track`: follow an object through a video from a box, points, or words; memory stays flat however long it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jobs.cli import run
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.media.encode import write_video
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.models.shipped import DEFAULT_DETECTOR, DEFAULT_TRACKER


def command(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    out: Annotated[Path, typer.Option(help="The video with masks drawn on it (.mp4).")],
    box: Annotated[
        list[str] | None, typer.Option(help="x0,y0,x1,y1 in pixels of the first frame; one an object.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="x,y on the object on the first frame; one an object.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="What to detect and then follow: 'person . dog .'")] = None,
    model: Annotated[str, typer.Option(help="SAM 2 spec; see vfm models.")] = DEFAULT_TRACKER,
    detector: Annotated[str, typer.Option(help="Detector spec, with --prompts.")] = DEFAULT_DETECTOR,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rows: Annotated[Path | None, typer.Option(help="Also write one JSON line per object and frame.")] = None,
) -> int:
    """Tracks by SAM 2's memory. Says how many frames and objects there were."""
    if not video.is_file():
        raise UsageError(f"there is no file {video}")
    if bool(prompts) == bool(box or point):
        raise UsageError("say what to follow: either --box / --point, or --prompts")
    from vfm_ops.track.load import load_network

    network = load_network(model, device=device)
    source = MediaSource(str(video))
    objects: set[Any] = set()
    with Sandbox(DecodeSettings(jpeg=False, pixels=True)) as sandbox:
        probe = sandbox.probe(source)
        frames = sandbox.frames(source, None, probe)
        found = (
            _by_words(network, frames, prompts, detector, device) if prompts else _by_hand(network, frames, box, point)
        )

        def drawn() -> Iterator[np.ndarray]:
            file = rows.open("w") if rows else None
            try:
                for rgb, index, seen in found:
                    objects.update(o["track_id"] for o in seen)
                    if file:
                        file.writelines(json.dumps({"frame_index": index, **o}) + "\n" for o in seen)
                    yield draw_objects(rgb, seen)
            finally:
                if file:
                    file.close()

        count = write_video(out, drawn(), probe.fps)
    print(f"{out}: {count} frames, {len(objects)} objects")
    return 0


def _by_hand(
    network: Any, frames: Iterator[Frame], boxes: list[str] | None, points: list[str] | None
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Follows what was pointed at on the first frame. Yields pixels, frame index, objects."""
    from vfm_ops.track.masks import encode_rle, mask_box
    from vfm_ops.track.prompts import Prompt
    from vfm_ops.track.tracker import Sam2Tracker

    given = [Prompt(i, box=_numbers(b, 4, "--box")) for i, b in enumerate(boxes or [])]
    given += [
        Prompt(len(given) + i, points=[_numbers(p, 2, "--point")], labels=[1]) for i, p in enumerate(points or [])
    ]
    tracker = Sam2Tracker(network)
    for number, frame in enumerate(frames):
        assert frame.pixels is not None
        masks = tracker.track(frame.pixels)
        if number == 0:
            masks = tracker.prompt(given)
        seen = []
        for i, object_id in enumerate(masks.object_ids):
            mask = masks.mask(object_id)
            if masks.visible[i] and mask.any():
                box = [float(v) for v in mask_box(mask)]
                seen.append(
                    {"track_id": object_id, "box": box, "mask": encode_rle(mask), "score": float(masks.scores[i])}
                )
        yield frame.pixels, frame.frame_index, seen


def _by_words(
    network: Any, frames: Iterator[Frame], prompts: str, spec: str, device: str
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Detects by text, then follows. Yields pixels, frame index, objects."""
    from vfm_ops.detect import load_detector
    from vfm_ops.track.detect_then_track import DetectThenTrack

    names = [p.strip() for p in prompts.split(".") if p.strip()]
    tracker = DetectThenTrack(load_detector(spec, device=device), network, names)
    for frame in frames:
        assert frame.pixels is not None
        result = tracker.step(frame.frame_index, frame.pts_s, frame.pixels)
        rows = [r for r in result.tracks if r.visible]
        yield (
            frame.pixels,
            frame.frame_index,
            [
                {"track_id": r.track_id, "label": r.label, "box": r.box.tolist(), "mask": r.mask, "score": r.score}
                for r in rows
            ],
        )


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise UsageError(f"{option} {text}: give {count} numbers, separated by commas")
    return values


if __name__ == "__main__":
    sys.exit(run(command))
