"""`vfm overlay`: masks, boxes and ids drawn over a video of the lake, or over a contact sheet of its frames."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from jobs.cli import run
from jobs.process import LakeOption
from pipelines.export import assets_by_stem, detections_of, rows, tracks_of
from pipelines.lake import Lake
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.evaluate.sheet import contact_sheet
from vfm_ops.media.encode import write_video
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox


def command(
    lake: LakeOption,
    out: Annotated[Path, typer.Option(help="NAME.mp4: a video with its tracks; NAME.jpg or .png: a sheet of frames.")],
    asset: Annotated[
        str | None, typer.Option(help="Asset id, or file name without its ending (a video for .mp4).")
    ] = None,
    count: Annotated[int, typer.Option(help="Frames on a contact sheet.")] = 24,
) -> int:
    """Renders what was detected and tracked, to look at."""
    target = Lake.open(lake)
    if out.suffix.lower() == ".mp4":
        frames = overlay_video(target, _asset_id(target, asset), out)
        print(f"{out}: {frames} frames")
    else:
        shown = overlay_sheet(target, _asset_id(target, asset) if asset else None, out, count)
        print(f"{out}: {shown} frames")
    return 0


def overlay_video(lake: Lake, asset_id: str, out: Path) -> int:
    """Draws an asset's tracks over all its frames. Returns how many. UsageError when nothing was tracked on it."""
    by_frame: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in tracks_of(lake, asset_id):
        by_frame[row["frame_index"]].append(row)
    if not by_frame:
        raise UsageError(f"asset {asset_id} has no tracks: process it with track: true, or name another with --asset")
    source = media_source(lake.read("assets", filter=f"asset_id = '{asset_id}'").to_pylist()[0], RowReader())
    with Sandbox(DecodeSettings(jpeg=False, quality=False, phash=False, pixels=True)) as sandbox:
        probe = sandbox.probe(source)

        def drawn() -> Iterator[np.ndarray]:
            for frame in sandbox.frames(source, None, probe):
                assert frame.pixels is not None
                yield draw_objects(frame.pixels, by_frame[frame.frame_index])

        return write_video(out, drawn(), probe.fps)


def overlay_sheet(lake: Lake, asset_id: str | None, out: Path, count: int) -> int:
    """A contact sheet of frames with their detections. Returns how many frames it shows."""
    chosen: list[dict[str, Any]] = []
    condition = f"asset_id = '{asset_id}'" if asset_id else None
    seen = {r["frame_id"] for r in rows(lake, "detections", ["frame_id"], condition)}
    for row in rows(lake, "frames", ["frame_id", "pts_s", "jpeg"], condition):
        if row["frame_id"] in seen and row["jpeg"] and len(chosen) < count:
            chosen.append(row)
    if not chosen:
        raise UsageError("there are no detections to draw: process the lake with a recipe that has detect")
    pictures, captions = [], []
    for row in chosen:
        rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        objects = [
            {"box": d["box"], "label": d["label"], "score": d["score"]} for d in detections_of(lake, row["frame_id"])
        ]
        pictures.append(draw_objects(rgb, objects))
        captions.append(f"{row['frame_id'][-12:]}  {row['pts_s']:.2f} s")
    cv2.imwrite(str(out), cv2.cvtColor(contact_sheet(pictures, captions), cv2.COLOR_RGB2BGR))
    return len(chosen)


def _asset_id(lake: Lake, asset: str | None) -> str:
    """An asset by id or by name; without either, the first that has tracks."""
    if asset is None:
        first = next(rows(lake, "tracks", ["asset_id"]), None)
        if first is None:
            raise UsageError("no video of this lake has tracks: process it with track: true")
        return first["asset_id"]
    names = assets_by_stem(lake)
    if asset in names:
        return names[asset]
    if asset in names.values():
        return asset
    raise UsageError(f"the lake has no asset {asset!r}: give its id, or its file name without the ending")


if __name__ == "__main__":
    sys.exit(run(command))
