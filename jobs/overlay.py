"""`vfm overlay`: masks, boxes and ids drawn over a video of the lake, or over a contact sheet of its frames."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from jobs.cli import run
from jobs.process import LakeOption
from jobs.storing import AnnotationsFlag, AuthorFilter, annotated
from pipelines.lake import Lake
from pipelines.lake.sql import equals
from pipelines.reporting.export import detections_of, rows, tracks_of, video_frames, video_probes
from pipelines.reporting.names import AssetNames
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.evaluate.files import PICTURES, VIDEOS, check_place, write_picture
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.evaluate.sheet import MAX_PICTURES, contact_sheet
from vfm_ops.media.encode import write_video
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits


def command(
    lake: LakeOption,
    out: Annotated[Path, typer.Option(help="NAME.mp4: a video with its tracks; NAME.jpg or .png: a sheet of frames.")],
    asset: Annotated[
        str | None,
        typer.Option(help="Asset id, or file name, with its folders where two share one (a video for .mp4)."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=MAX_PICTURES, help="Frames on a contact sheet.")] = 24,
    annotations: AnnotationsFlag = False,
    author: AuthorFilter = None,
) -> int:
    """Renders what was detected and tracked, or annotated, to look at."""
    target = annotated(Lake.open(lake), annotations, author)
    check_place(out, VIDEOS + PICTURES)
    if out.suffix.lower() in VIDEOS:
        shown = overlay_video(target, _asset_id(target, asset), out)
    else:
        shown = overlay_sheet(target, AssetNames(target).find(asset) if asset else None, out, count)
    print(f"{out}: {shown} frames")
    return 0


def overlay_video(lake: Lake, asset_id: str, out: Path) -> int:
    """Draws an asset's tracks over all its frames. Returns how many. UsageError when nothing was tracked on it."""
    by_frame: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in tracks_of(lake, asset_id):
        by_frame[row["frame_index"]].append(row)
    if not by_frame:
        raise UsageError(f"asset {asset_id} has no tracks: process it with track: true, or name another with --asset")
    size = _drawn_size(lake, asset_id, by_frame)

    def drawn() -> Iterator[np.ndarray]:
        for number, rgb in enumerate(video_frames(lake, asset_id)):
            if rgb.shape[1::-1] != size:
                rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            yield draw_objects(rgb, by_frame[number])

    probe = video_probes(lake).get(asset_id)
    try:
        return write_video(out, drawn(), (probe and probe["fps"]) or 25.0)
    except MediaError as e:
        raise UsageError(f"asset {asset_id} can't be drawn to its end: {e}") from e


def _drawn_size(lake: Lake, asset_id: str, by_frame: dict[int, list[dict[str, Any]]]) -> tuple[int, int]:
    """(width, height) in whose pixels an asset's boxes and masks are: those of its stored frames, which may be smaller."""
    for tracks in by_frame.values():
        for row in tracks:
            if row["mask"] is not None:
                return int(row["mask"]["size"][1]), int(row["mask"]["size"][0])
    stored = next(rows(lake, "frames", ["width", "height"], equals("asset_id", asset_id)), None)
    if stored is None:
        raise UsageError(f"asset {asset_id} has neither a mask nor a stored frame that tells the size of its boxes")
    return int(stored["width"]), int(stored["height"])


def overlay_sheet(lake: Lake, asset_id: str | None, out: Path, count: int) -> int:
    """A contact sheet of frames with their detections. Returns how many frames it shows."""
    condition = equals("asset_id", asset_id) if asset_id else None
    seen = {r["frame_id"] for r in rows(lake, "detections", ["frame_id"], condition)}
    if not seen:
        where = f"of asset {asset_id} " if asset_id else ""
        raise UsageError(f"there are no detections {where}to draw: process the lake with a recipe that has detect")
    stored = rows(lake, "frames", ["frame_id", "asset_id", "pts_s", "width", "height", "jpeg"], condition)
    chosen = list(islice((r for r in stored if r["frame_id"] in seen and r["jpeg"]), count))
    if not chosen:
        raise UsageError("the frames with detections have no stored picture: process the lake with jpeg.store=true")
    names = AssetNames(lake)
    pictures, captions = [], []
    for row in chosen:
        rgb = decode_image(row["jpeg"], Limits(), row["frame_id"])
        scale = np.array(
            [rgb.shape[1] / (row["width"] or rgb.shape[1]), rgb.shape[0] / (row["height"] or rgb.shape[0])] * 2
        )
        objects = [
            {"box": d["box"] * scale, "label": d["label"], "score": d["score"], "mask": d.get("mask")}
            for d in detections_of(lake, row["frame_id"])
        ]
        pictures.append(draw_objects(rgb, objects))
        captions.append(f"{names.original(row['asset_id'])}\n{row['pts_s'] or 0.0:.2f} s")
    write_picture(out, contact_sheet(pictures, captions))
    return len(chosen)


def _asset_id(lake: Lake, asset: str | None) -> str:
    """An asset by id or by name; without either, the first that has tracks."""
    if asset is None:
        first = next(rows(lake, "tracks", ["asset_id"]), None)
        if first is None:
            raise UsageError("no video of this lake has tracks: process it with track: true")
        return first["asset_id"]
    return AssetNames(lake).find(asset)


if __name__ == "__main__":
    sys.exit(run(command))
