"""`vfm track`: follow objects through a video from points, boxes, masks, or words, and correct them on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from jobs.cli import run
from jobs.prompts import boxes_of, points_of
from jobs.storing import Annotator, AuthorOption, LabelOption, LakeFolder, StoreFlag, annotator, open_lake
from pipelines.annotation import lake_video, object_name
from pipelines.lake import Lake
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import VIDEOS, check_place
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.media.encode import write_video
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.video_frames import VideoFrames, frame_sandbox
from vfm_ops.models.shipped import DEFAULT_DETECTOR, DEFAULT_TRACKER

OPTIONS_OF_ARGUMENTS = {"max_frame_num_to_track": "--frames", "frame_idx": "--frame"}


def command(
    video: Annotated[str, typer.Argument(help="A video file; with --lake a file name or an asset's id.")],
    out: Annotated[Path | None, typer.Option(help="The video with masks drawn on it (.mp4).")] = None,
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
    lake: LakeFolder = None,
    store: StoreFlag = False,
    author: AuthorOption = None,
    label: LabelOption = None,
) -> int:
    """Tracks by SAM 2's memory. Says how many frames and objects there were."""
    opened = open_lake(lake, store, author, label)
    if opened is None and not Path(video).is_file():
        raise UsageError(f"there is no file {video}")
    if bool(prompts) == bool(box or point or prompt_file):
        raise UsageError("say what to follow: either --box, --point or --prompt-file, or --prompts")
    if not (out or rows or store):
        raise UsageError("say what to make of it: --out, --rows or --store")
    check_place(out, VIDEOS)
    check_place(rows)
    calls = _calls(box, point, frame, prompt_file)
    keeper = annotator(opened, store, author, f"vfm track {model}")
    hand = {"fill_hole_area": fill_hole_area, "non_overlap_masks": non_overlap_masks}
    way = Way(calls, prompt_file.parent if prompt_file else Path(), direction, frames, hand)
    words = {"prompts": prompts, "detector": detector} if prompts else None
    return _track(video, opened, model, device, way, words, out, rows, keeper, label)


@dataclass(frozen=True)
class Way:
    """Calls to a session, and how it goes on at their end. folder: where files that they name lie. settings: of the tracker."""

    calls: list[Any]
    folder: Path
    direction: str
    frames: int | None
    settings: dict[str, Any]

    @property
    def rest(self) -> list[Any]:
        """The calls that track what is left."""
        from vfm_ops.track.prompt_file import PropagateInVideo

        ways = {"forward": [False], "backward": [True], "both": [False, True]}[self.direction]
        return [PropagateInVideo(max_frame_num_to_track=self.frames, reverse=reverse) for reverse in ways]


def _track(
    video: str,
    lake: Lake | None,
    model: str,
    device: str,
    way: Way,
    words: dict[str, Any] | None,
    out: Path | None,
    rows: Path | None,
    keeper: Annotator | None,
    label: str | None,
) -> int:
    """Tracks, and makes what is to be made. Returns the exit code."""
    from vfm_ops.track.load import load_network

    network = load_network(model, device=device)
    with frame_sandbox() as sandbox:
        asset_id, seen = (
            ("", VideoFrames(MediaSource(video), sandbox)) if lake is None else lake_video(lake, video, sandbox)
        )
        if words:
            found = _by_words(network, _pixels(sandbox, seen), words, device)
        else:
            tracked = _by_hand(network, seen, way)
            seen.stop()
            found = _with_pixels(_pixels(sandbox, seen), tracked)
        tally = Tally(rows)
        drawn = tally.drawn(found)
        count = write_video(out, drawn, seen.probe.fps) if out else sum(1 for _ in drawn)
    if keeper:
        told = Words(words, label) if words else ByHand(way, label)
        times = seen.probe.pts_s
        place = {"asset_id": asset_id, "kind": "track"}
        keeper.add(
            [
                place | {"frame_index": t, "pts_s": float(times[t]), **told.of(keeper.author, o)}
                for t, o in tally.objects
            ]
        )
        keeper.finish()
    print(f"{out or video}: {count} frames, {len({o['track_id'] for _, o in tally.objects})} objects")
    return 0


@dataclass
class Tally:
    """What was found: (frame index, object), as it passes; written to `file` as JSON lines, where there is one."""

    file: Path | None
    objects: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def drawn(self, found: Iterator[tuple[np.ndarray, int, list[dict]]]) -> Iterator[np.ndarray]:
        """Frames with their objects on them."""
        with self.file.open("w") if self.file else nullcontext() as file:
            for rgb, index, seen in found:
                self.objects += [(index, o) for o in seen]
                if file:
                    file.writelines(json.dumps({"frame_index": index, **o}) + "\n" for o in seen)
                yield draw_objects(rgb, seen)


class ByHand:
    """What annotations say of objects that were followed by hand: each by its own calls, as in a file of prompts."""

    def __init__(self, way: Way, label: str | None) -> None:
        from vfm_ops.track.prompt_file import AddPrompt, entry_of

        self._calls = way.calls
        self._entries = [entry_of(call, way.folder) for call in way.calls]
        self._rest = [entry_of(call, way.folder) for call in way.rest]
        self._is_prompt = [isinstance(call, AddPrompt) for call in way.calls]
        self._label = label
        self._settings = {name: value for name, value in way.settings.items() if value}
        self._told: dict[int, dict[str, Any]] = {}

    def of(self, author: str, found: dict[str, Any]) -> dict[str, Any]:
        """Name, label and prompts of an object, beside its box, mask and score."""
        number = found["track_id"]
        if number not in self._told:
            every = zip(self._calls, self._entries, self._is_prompt)
            own = [(e, prompt) for call, e, prompt in every if getattr(call, "obj_id", number) == number]
            prompts = [e for e, prompt in own if prompt]
            named = [e["object"] for e in prompts if e.get("object")]
            labels = [e["label"] for e in prompts if e.get("label")]
            self._told[number] = {
                "object_id": named[-1] if named else object_name(author, prompts[0]["frame_idx"], prompts[0]),
                "label": labels[-1] if labels else self._label,
                "prompts": json.dumps({"prompts": [e for e, _ in own] + self._rest, **self._settings}),
            }
        return self._told[number] | {name: found[name] for name in ("box", "mask", "score")}


@dataclass(frozen=True)
class Words:
    """What annotations say of objects that words found."""

    words: dict[str, Any]
    label: str | None

    def of(self, author: str, found: dict[str, Any]) -> dict[str, Any]:
        """As `ByHand.of`."""
        name = f"{object_name(author, 0, {'mask': self.words})}/{found['track_id']}"
        told = {"object_id": name, "label": self.label or found["label"], "prompts": self.words}
        return told | {name: found[name] for name in ("box", "mask", "score")}


def _calls(boxes: list[str] | None, points: list[str] | None, frame: int, file: Path | None) -> list[Any]:
    """What is said of the objects, numbered from 0 in the order of the options; then the file's."""
    from vfm_ops.track.prompt_file import AddPrompt, read_calls

    shown: list[dict[str, Any]] = [{"box": b} for b in boxes_of(boxes)]
    shown += [{"points": xy, "labels": on} for xy, on in points_of(points)]
    calls: list[Any] = [AddPrompt.model_validate({"frame_idx": frame, "obj_id": i, **s}) for i, s in enumerate(shown)]
    return calls + (read_calls(file) if file else [])


def _by_hand(network: Any, video: VideoFrames, way: Way) -> dict[int, dict[int, dict]]:
    """Makes the calls, then tracks what is left. Returns the objects of each frame, as rows: the last that was said of each.

    They are held until all is tracked, a few hundred bytes each: a correction may change any of them.
    """
    from vfm_ops.track.memory_bank import BankPolicy
    from vfm_ops.track.prompt_file import RemoveObject, ResetState, run_calls
    from vfm_ops.track.session import VideoSession
    from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

    bank = BankPolicy(around_prompts=way.direction != "forward")
    session = VideoSession(Sam2Tracker(network, TrackerSettings(bank=bank, **way.settings)), video)
    rows: dict[int, dict[int, dict]] = {}
    for call in [*way.calls, *way.rest]:
        if isinstance(call, RemoveObject | ResetState):
            gone = session.object_ids if isinstance(call, ResetState) else [call.obj_id]
            rows = {t: {i: row for i, row in seen.items() if i not in gone} for t, seen in rows.items()}
        for masks in run_calls(session, [call], way.folder):
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


def _pixels(sandbox: Sandbox, video: VideoFrames) -> Iterator[tuple[int, float, np.ndarray]]:
    """Index, time and pixels of every frame."""
    for frame in sandbox.frames(video.source, None, video.probe):
        yield frame.frame_index, frame.pts_s, video.scaled(frame.pixels)


def _with_pixels(
    frames: Iterator[tuple[int, float, np.ndarray]], rows: dict[int, dict[int, dict]]
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Yields pixels, frame index, objects."""
    for index, _, rgb in frames:
        yield rgb, index, [row for row in rows.get(index, {}).values() if row]


def _by_words(
    network: Any, frames: Iterator[tuple[int, float, np.ndarray]], words: dict[str, Any], device: str
) -> Iterator[tuple[np.ndarray, int, list[dict]]]:
    """Detects by text, then follows. Yields pixels, frame index, objects."""
    from vfm_ops.detect import load_detector
    from vfm_ops.detect.prompts import split_prompt
    from vfm_ops.track.detect_then_track import DetectThenTrack

    tracker = DetectThenTrack(load_detector(words["detector"], device=device), network, split_prompt(words["prompts"]))
    for index, pts_s, rgb in frames:
        result = tracker.step(index, pts_s, rgb)
        rows = [r for r in result.tracks if r.visible]
        yield (
            rgb,
            index,
            [
                {"track_id": r.track_id, "label": r.label, "box": r.box.tolist(), "mask": r.mask, "score": r.score}
                for r in rows
            ],
        )


if __name__ == "__main__":
    sys.exit(run(command))
