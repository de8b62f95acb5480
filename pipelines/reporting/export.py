"""Out of the lake: annotation files that the field's own tools read, and the rows behind overlays and scores.

What a file names exists: a picture that is listed is written beside it, under the name that its source had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2

from pipelines.lake import Lake
from pipelines.lake.ledger import of_decoding
from pipelines.lake.sql import equals, one_of
from pipelines.reporting.annotated import AnnotatedLake
from pipelines.reporting.names import AssetNames
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.evaluate.coco import write_coco
from vfm_ops.evaluate.files import whole_file
from vfm_ops.evaluate.mot import write_mot
from vfm_ops.evaluate.webdataset import write_webdataset
from vfm_ops.evaluate.youtube_vis import write_youtube_vis
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.jpeg import encode_jpeg
from vfm_ops.media.sandbox import Sandbox

FORMATS = ("coco", "youtube-vis", "mot", "webdataset")
Row = dict[str, Any]


def export(
    lake: Lake,
    format: str,
    out: Path,
    *,
    pictures: bool = True,
    annotations: bool = False,
    author: str | None = None,
) -> dict[str, int]:
    """Writes a lake's detections or tracks. Returns how many of each thing there were.

    coco: one JSON file, stored pictures in `images/` beside it. youtube-vis: one JSON file, every frame of the videos in
    `JPEGImages/` beside it. mot: a results file a video, and labels.txt. webdataset: tar shards of frames with their
    detections. pictures: false writes the JSON files alone. annotations: writes what people and imports said instead, of an
    author or of all, and the frames that they looked at. Raises UsageError for an unknown format, or a lake without what
    it needs.
    """
    if format not in FORMATS:
        raise UsageError(f"`format` {format!r} is unknown: use one of {', '.join(FORMATS)}")
    if annotations:
        lake = AnnotatedLake(lake, author)
    needed = {"coco": "detections", "youtube-vis": "tracks", "mot": "tracks", "webdataset": "frames"}[format]
    if lake.count(needed) == 0:
        if annotations:
            raise UsageError(f"{lake.root} has no annotated {needed} to export as {format}")
        raise UsageError(f"{lake.root} has no {needed} to export: process it with a recipe that makes them")
    writer = {"coco": _coco, "youtube-vis": _youtube_vis, "mot": _mot, "webdataset": _webdataset}[format]
    try:
        return writer(lake, AssetNames(lake), out, pictures)
    except OSError as e:
        if e.filename is None:  # the lake's store, not the place that is written to
            raise
        raise UsageError(f"cannot write {e.filename}: {e.strerror}") from e


def _coco(lake: Lake, names: AssetNames, out: Path, pictures: bool) -> dict[str, int]:
    videos = video_probes(lake)
    columns = ["frame_id", "asset_id", "frame_index", "width", "height", *(["jpeg"] if pictures else [])]

    def named() -> Iterator[Row]:
        for row in rows(lake, "frames", columns):
            asset_id = row["asset_id"]
            if asset_id in videos:
                name = names.frame(asset_id, row["frame_index"])
            else:
                # Without a stored picture the source's own file is the only one there is.
                name = names.picture(asset_id) if row.get("jpeg") else names.original(asset_id)
            yield row | {"file_name": name, "source": names.source[asset_id]}

    return write_coco(out, named(), rows(lake, "detections"), images_dir=out.parent / "images" if pictures else None)


def _youtube_vis(lake: Lake, names: AssetNames, out: Path, pictures: bool) -> dict[str, int]:
    probes = video_probes(lake)
    sizes = {i: (p["width"], p["height"]) for i, p in probes.items()}
    lengths: dict[str, int] = {i: p["frames"] or 0 for i, p in probes.items()}
    for row in rows(lake, "frames", ["asset_id", "width", "height"]):
        if row["asset_id"] in sizes:  # of the stored frame, in whose pixels masks are
            sizes[row["asset_id"]] = (row["width"], row["height"])
    folders = {i: names.folder(i) for i in probes}
    written = 0
    if pictures:
        for asset_id in probes:
            folder = out.parent / "JPEGImages" / folders[asset_id]
            lengths[asset_id] = _write_frames(lake, asset_id, folder, sizes[asset_id])
            written += lengths[asset_id]
    counts = write_youtube_vis(out, [], track_rows(lake), lengths=lengths, sizes=sizes, folders=folders)
    return counts | ({"pictures": written} if pictures else {})


def _write_frames(lake: Lake, asset_id: str, folder: Path, size: tuple[int, int]) -> int:
    """Writes every frame of a video as a JPEG of that (width, height), as its masks are. Returns how many."""
    count = 0
    try:
        for frame in video_frames(lake, asset_id):
            if frame.shape[1::-1] != size:
                frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            with whole_file(folder / f"{count:06d}.jpg", "wb") as file:
                file.write(encode_jpeg(frame))
            count += 1
    except MediaError as e:
        if not count:  # of a video that breaks off, what lies before is what was tracked
            raise UsageError(
                f"the frames of {asset_id} can't be written: {str(e).rstrip('.')}; or export with `pictures=False`"
            ) from e
    return count


def video_frames(lake: Lake, asset_id: str) -> Iterator[Any]:
    """Every frame of a video, decoded from its source: uint8 RGB (H, W, 3), in order. MediaError when it can't be."""
    asset = lake.read("assets", filter=equals("asset_id", asset_id)).to_pylist()[0]
    source = media_source(asset, RowReader())
    with Sandbox(DecodeSettings(jpeg=False, pixels=True)) as sandbox:
        for frame in sandbox.frames(source, None, sandbox.probe(source)):
            assert frame.pixels is not None
            yield frame.pixels


def _mot(lake: Lake, names: AssetNames, out: Path, pictures: bool) -> dict[str, int]:
    probes = video_probes(lake)
    tracks = {(r["asset_id"], r["label"] or "") for r in rows(lake, "tracks", ["asset_id", "label"])}
    labels, tracked = sorted({label for _, label in tracks}), {asset_id for asset_id, _ in tracks}
    return write_mot(
        out,
        track_rows(lake),
        ground_truth=False,
        lengths=dict.fromkeys((i for i in probes if i not in tracked), 0),  # files of videos on which nothing was found
        classes={label: i + 1 for i, label in enumerate(labels)},
        sizes={i: (p["width"], p["height"]) for i, p in probes.items()},
        names={i: names.flat(i) for i in probes},
    )


def _webdataset(lake: Lake, names: AssetNames, out: Path, pictures: bool) -> dict[str, int]:
    columns = ["frame_id", "asset_id", "frame_index", "pts_s", "width", "height", "jpeg", "quality"]
    if not lake.count("frames", "jpeg IS NOT NULL"):
        raise UsageError(f"{lake.root} stores no pictures, which a shard is made of: process it with jpeg.store=true")
    facts = {
        r["asset_id"]: {k: r[k] for k in ("caption", "label") if r[k]}
        for r in rows(lake, "assets", ["asset_id", "caption", "label"], "caption IS NOT NULL OR label IS NOT NULL")
    }
    found: dict[str, list[Row]] = {}

    def stored() -> Iterator[Row]:
        """Frames that have a picture; `found` holds the detections of a batch, which is asked about a row at a time."""
        for batch in lake.scan("frames", columns, "jpeg IS NOT NULL", batch_size=256):
            frames = batch.to_pylist()
            found.clear()
            found.update(_detections_of_each(lake, [r["frame_id"] for r in frames]))
            for row in frames:
                asset_id = row["asset_id"]
                origin = {"file_name": names.original(asset_id), "source": names.source[asset_id]}
                yield row | origin | facts.get(asset_id, {})

    return write_webdataset(out, stored(), annotations=lambda i: found.get(i, []))


def rows(lake: Lake, table: str, columns: list[str] | None = None, filter: str | None = None) -> Iterator[Row]:
    """Plain rows of a table, streamed; none of a table that is not there yet."""
    if lake.count(table) == 0:
        return
    for batch in lake.scan(table, columns, filter, batch_size=256):
        yield from batch.to_pylist()


def track_rows(lake: Lake) -> Iterator[Row]:
    """Rows of `tracks`, one asset after the other, each in order of frames."""
    assets = sorted({i for batch in lake.scan("tracks", ["asset_id"]) for i in batch["asset_id"].to_pylist()})
    for asset_id in assets:
        yield from tracks_of(lake, asset_id)


def tracks_of(lake: Lake, asset_id: str) -> list[Row]:
    """Tracks of one video, in order of frames."""
    found = lake.read("tracks", filter=equals("asset_id", asset_id)).to_pylist()
    return sorted(found, key=lambda r: (r["frame_index"], r["track_id"]))


def detections_of(lake: Lake, frame_id: str) -> list[Mapping[str, Any]]:
    """Detections of one frame, best first."""
    return list(_detections_of_each(lake, [frame_id]).get(frame_id, []))


def _detections_of_each(lake: Lake, frame_ids: list[str]) -> dict[str, list[Row]]:
    """frame_id -> its detections, best first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(
        rows(lake, "detections", None, one_of("frame_id", frame_ids)), key=lambda r: -(r["score"] or 0.0)
    ):
        found.setdefault(row["frame_id"], []).append(row)
    return found


def video_probes(lake: Lake) -> dict[str, Row]:
    """asset_id -> probe, of the settled videos."""
    return {
        r["asset_id"]: r["probe"]
        for r in rows(lake, "ledger", ["asset_id", "probe"], of_decoding(lake))
        if r["probe"] and r["probe"]["codec"]
    }
