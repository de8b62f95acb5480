"""Out of the lake: annotation files that the field's own tools read, and the rows behind overlays and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from pipelines.lake import Lake
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.coco import write_coco
from vfm_ops.evaluate.mot import write_mot
from vfm_ops.evaluate.webdataset import write_webdataset
from vfm_ops.evaluate.youtube_vis import write_youtube_vis

FORMATS = ("coco", "youtube-vis", "mot", "webdataset")
Row = dict[str, Any]


def export(lake: Lake, format: str, out: Path) -> dict[str, int]:
    """Writes a lake's detections or tracks. Returns how many of each thing there were.

    coco: one JSON file, pictures beside it. youtube-vis: one JSON file. mot: a folder a video. webdataset: tar shards of
    frames with their detections. Raises UsageError for an unknown format, or a lake without what it needs.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format!r} is unknown: use one of {', '.join(FORMATS)}")
    needed = {"coco": "detections", "youtube-vis": "tracks", "mot": "tracks", "webdataset": "frames"}[format]
    if lake.count(needed) == 0:
        raise UsageError(f"{lake.root} has no {needed} to export: process it with a recipe that makes them")
    if format == "coco":
        columns = ["frame_id", "width", "height", "jpeg"]
        return write_coco(
            out, rows(lake, "frames", columns), rows(lake, "detections"), images_dir=out.parent / "images"
        )
    if format == "youtube-vis":
        return write_youtube_vis(out, [], track_rows(lake))
    if format == "mot":
        probes = video_probes(lake)
        return write_mot(
            out,
            track_rows(lake),
            ground_truth=False,
            lengths={i: p["frames"] for i, p in probes.items()},
            sizes={i: (p["width"], p["height"]) for i, p in probes.items()},
        )
    columns = ["frame_id", "asset_id", "frame_index", "pts_s", "width", "height", "jpeg", "quality"]
    return write_webdataset(out, rows(lake, "frames", columns), annotations=lambda i: detections_of(lake, i))


def rows(lake: Lake, table: str, columns: list[str] | None = None, filter: str | None = None) -> Iterator[Row]:
    """Plain rows of a table, streamed."""
    for batch in lake.scan(table, columns, filter, batch_size=256):
        yield from batch.to_pylist()


def track_rows(lake: Lake) -> Iterator[Row]:
    """Rows of `tracks`, one asset after the other, each in order of frames."""
    assets = sorted({i for batch in lake.scan("tracks", ["asset_id"]) for i in batch["asset_id"].to_pylist()})
    for asset_id in assets:
        yield from tracks_of(lake, asset_id)


def tracks_of(lake: Lake, asset_id: str) -> list[Row]:
    """Tracks of one video, in order of frames."""
    found = lake.read("tracks", filter=f"asset_id = '{asset_id}'").to_pylist()
    return sorted(found, key=lambda r: (r["frame_index"], r["track_id"]))


def detections_of(lake: Lake, frame_id: str) -> list[Mapping[str, Any]]:
    """Detections of one frame, best first."""
    found = lake.read("detections", filter=f"frame_id = '{frame_id}'").to_pylist()
    return sorted(found, key=lambda r: -r["score"])


def video_probes(lake: Lake) -> dict[str, Row]:
    """asset_id -> probe, of the settled videos."""
    return {
        r["asset_id"]: r["probe"]
        for r in rows(lake, "ledger", ["asset_id", "probe"])
        if r["probe"] and r["probe"]["codec"]
    }


def assets_by_stem(lake: Lake) -> dict[str, str]:
    """File name without its ending -> asset_id. UsageError when two assets share a name."""
    found: dict[str, str] = {}
    for row in rows(lake, "assets", ["asset_id", "uri", "member"]):
        stem = PurePosixPath(unquote(row["member"] or row["uri"])).stem
        if stem in found:
            raise UsageError(f"two assets are named {stem}: ground truth can't be matched by file name")
        found[stem] = row["asset_id"]
    return found
