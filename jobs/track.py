"""`vfm track`: follow objects through a video from points, boxes, masks, or words, and correct them on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from jobs.cli import run
from jobs.prompts import boxes_of, points_of
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.media.encode import write_video
from vfm_ops.media.frame import Frame
from vfm_ops.media.source import MediaSource
from vfm_ops.media.video_frames import VideoFrames, frame_sandbox
from vfm_ops.models.shipped import DEFAULT_DETECTOR, DEFAULT_TRACKER

OPTIONS_OF_ARGUMENTS = {"max_frame_num_to_track": "--frames", "frame_idx": "--frame"}


def command(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    out: Annotated[Path, typer.Option(help="The video with masks drawn on it (.mp4).")],
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1 in pixels of --frame; one an object.")] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="'x,y x,y,0' on --frame: points of one object, those off it with a third number 0."),
    ] = None,
    frame: Annotated[int, typer.Option(help="The frame of --box and --point, 0 for the first.", min=0)] = 0,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts, corrections and more, on any frame, from a JSON or YAML file.")
    ] = None,
    direction: Annotated[Literal["forward", "backward", "both"], typer.Option(help="From the prompts on.")] = "forward",
    frames: Annotated[int | None, typer.Option(help="At most so many beyond the first, each way.", min=0)] = None,
    fill_hole_area: Annotated[
        int, typer.Option(help="Fill holes of at most so many pixels of the model's mask.", min=0)
    ] = 0,
    non_overlap_masks: Annotated[
        bool, typer.Option("--non-overlap-masks", help="A pixel is of one object alone.")
    ] = False,
    prompts: Annotated[str | None, typer.Option(help="What to detect and then follow: 'person . dog .'")] = None,
    model: Annotated[str, typer.Option(help="SAM 2 spec; see vfm models.")] = DEFAULT_TRACKER,
    detector: Annotated[str, typer.Option(help="Detector spec, with --prompts.")] = DEFAULT_DETECTOR,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rows: Annotated[Path | None, typer.Option(help="Also write one JSON line per object and frame.")] = None,
) -> int:
    """Tracks by SAM 2's memory. Says how many frames and objects there were."""
    if not video.is_file():
        raise UsageError(f"there is no file {video}")
    if bool(prompts) == bool(box or point or prompt_file):
        raise UsageError("say what to follow: either --box, --point or --prompt-file, or --prompts")
    from vfm_ops.track.load import load_network

    calls = _calls(box, point, frame, prompt_file)
    network = load_network(model, device=device)
    with frame_sandbox() as sandbox:
        source = MediaSource(str(video))
        seen = VideoFrames(source, sandbox)
        if prompts:
            found = _by_words(network, sandbox.frames(source, None, seen.probe), prompts, detector, device)
        else:
            settings = {"fill_hole_area": fill_hole_area, "non_overlap_masks": non_overlap_masks}
            folder = prompt_file.parent if prompt_file else Path()
            tracked = _by_hand(network, seen, calls, folder, direction, frames, settings)
            seen.stop()
            found = _with_pixels(sandbox.frames(source, None, seen.probe), tracked)
        objects: set[Any] = set()
        count = write_video(out, _drawn(found, rows, objects), seen.probe.fps)
    print(f"{out}: {count} frames, {len(objects)} objects")
    return 0


def _drawn(
    found: Iterator[tuple[np.ndarray, int, list[dict]]], rows: Path | None, objects: set[Any]
) -> Iterator[np.ndarray]:
    """Frames with their objects on them, whose ids are put into `objects`, and whose rows are written."""
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


def _calls(boxes: list[str] | None, points: list[str] | None, frame: int, file: Path | None) -> list[Any]:
    """What is said of the objects, numbered from 0 in the order of the options; then the file's."""
    from vfm_ops.track.prompt_file import AddPrompt, read_calls

    shown: list[dict[str, Any]] = [{"box": b} for b in boxes_of(boxes)]
    shown += [{"points": xy, "labels": on} for xy, on in points_of(points)]
    calls: list[Any] = [AddPrompt.model_validate({"frame_idx": frame, "obj_id": i, **s}) for i, s in enumerate(shown)]
    return calls + (read_calls(file) if file else [])


def _by_hand(
    network: Any,
    video: VideoFrames,
    calls: list[Any],
    folder: Path,
    direction: str,
    frames: int | None,
    settings: dict[str, Any],
) -> dict[int, dict[int, dict]]:
    """Makes the calls, then tracks what is left. Returns the objects of each frame, as rows: the last that was said of each.

    They are held until all is tracked, a few hundred bytes each: a correction may change any of them.
    """
    from vfm_ops.track.memory_bank import BankPolicy
    from vfm_ops.track.prompt_file import PropagateInVideo, RemoveObject, ResetState, run_calls
    from vfm_ops.track.session import VideoSession
    from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

    bank = BankPolicy(around_prompts=direction != "forward")
    session = VideoSession(Sam2Tracker(network, TrackerSettings(bank=bank, **settings)), video)
    ways = {"forward": [False], "backward": [True], "both": [False, True]}[direction]
    rest = [PropagateInVideo(max_frame_num_to_track=frames, reverse=reverse) for reverse in ways]
    rows: dict[int, dict[int, dict]] = {}
    for call in [*calls, *rest]:
        if isinstance(call, RemoveObject | ResetState):
            gone = session.object_ids if isinstance(call, ResetState) else [call.obj_id]
            rows = {t: {i: row for i, row in seen.items() if i not in gone} for t, seen in rows.items()}
        for masks in run_calls(session, [call], folder):
            rows.setdefault(masks.frame_index, {}).update(_rows(masks))
    return rows


def _rows(masks: Any) -> dict[int, dict]:
    """Row of each object that was tracked on a frame; an empty one where it does not show."""
    from vfm_ops.track.masks import encode_rle, mask_box

    found: dict[int, dict] = {}
    for object_id, mask, score, visible in zip(masks.object_ids, masks.masks(), masks.scores, masks.visible):
        found[object_id] = {}
        if visible and mask.any():
            box = [float(v) for v in mask_box(mask)]
            found[object_id] = {"track_id": object_id, "box": box, "mask": encode_rle(mask), "score": float(score)}
    return found


def _with_pixels(
    frames: Iterator[Frame], rows: dict[int, dict[int, dict]]
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Yields pixels, frame index, objects."""
    for frame in frames:
        assert frame.pixels is not None
        yield frame.pixels, frame.frame_index, [row for row in rows.get(frame.frame_index, {}).values() if row]


def _by_words(
    network: Any, frames: Iterator[Frame], prompts: str, spec: str, device: str
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Detects by text, then follows. Yields pixels, frame index, objects."""
    from vfm_ops.detect import load_detector
    from vfm_ops.detect.prompts import split_prompt
    from vfm_ops.track.detect_then_track import DetectThenTrack

    tracker = DetectThenTrack(load_detector(spec, device=device), network, split_prompt(prompts))
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


if __name__ == "__main__":
    sys.exit(run(command))
