"""YouTube-VIS files: videos, and one annotation a track with a mask (or null) for every frame of its video.

Rows are those of the lake's `frames` and `tracks`, sorted by asset_id; one video's rows are held at a time. A video's
timeline is all of its frames where its length is known, with or without an object; else those that its rows name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import (
    JsonArrays,
    Row,
    by_asset,
    inner_path,
    rle_run_lengths,
    rle_text,
    safe_name,
    write_json_list,
    xywh,
)


def write_youtube_vis(
    path: Path,
    frames: Iterable[Row],
    tracks: Iterable[Row],
    *,
    lengths: Mapping[str, int] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Write an annotation file; returns how many videos, annotations and categories it has.

    frames: asset_id, frame_index, width, height; may be empty. tracks: asset_id, track_id, frame_index, label, box,
    mask (COCO RLE), visible. lengths: frames of each asset, also of such without a row. sizes: their (width, height).
    folders: what an asset's folder is called; file names are `folder/frame.jpg` with six digits, `asset/frame.jpg`
    where it has none. Raises UsageError when rows are not sorted by asset_id, or a track has no mask.
    """
    category_of: dict[str, int] = {}
    lengths = dict(lengths or {})
    with JsonArrays(("videos", "annotations")) as arrays:

        def add(asset: str, own_frames: list[Row], own_tracks: list[Row]) -> None:
            timeline = {int(r["frame_index"]) for r in [*own_frames, *own_tracks]}
            timeline |= set(range(lengths.pop(asset, 0)))
            height, width = _size(asset, own_frames, own_tracks, sizes or {})
            video = arrays.counts["videos"] + 1
            folder = (folders or {}).get(asset) or safe_name(asset)
            names = [inner_path(f"{folder}/{index:06d}.jpg") for index in sorted(timeline)]
            shape = {"width": width, "height": height, "length": len(timeline)}
            arrays.add("videos", {"id": video, "file_names": names, "asset_id": asset, **shape})
            for track in _tracks(own_tracks):
                category = category_of.setdefault(str(track[0]["label"]), len(category_of) + 1)
                where = {"id": arrays.counts["annotations"] + 1, "video_id": video, "category_id": category}
                arrays.add("annotations", where | _annotation(track, sorted(timeline), height, width))

        for asset, own_frames, own_tracks in _merge_sorted(by_asset(frames, "frames"), by_asset(tracks, "tracks")):
            add(asset, own_frames, own_tracks)
        for asset in list(lengths):
            add(asset, [], [])
        categories = [{"id": i, "name": name} for name, i in category_of.items()]
        arrays.save(path, {"info": {"description": "exported by vfm"}, "licenses": [], "categories": categories})
        return {**arrays.counts, "categories": len(category_of)}


def write_youtube_vis_results(path: Path, tracks: Iterable[Row], ground_truth: Path) -> int:
    """Write tracks as a results list, with the video and category ids and the timeline of an annotation file.

    A track's score is the mean over its frames. Returns how many tracks were written. Raises UsageError for a video,
    frame or label that the annotation file lacks.
    """
    dataset = json.loads(Path(ground_truth).read_text())
    video_of = {str(v["asset_id"]): v for v in dataset["videos"] if "asset_id" in v}
    category_of = {str(c["name"]): c["id"] for c in dataset["categories"]}

    def results() -> Iterator[dict[str, Any]]:
        for asset, own in by_asset(tracks, "tracks"):
            if asset not in video_of:
                raise UsageError(f"{ground_truth} has no video of asset {asset}")
            timeline = [int(Path(name).stem) for name in video_of[asset]["file_names"]]
            for track in _tracks(own):
                label = str(track[0]["label"])
                if label not in category_of:
                    raise UsageError(f"{ground_truth} has no category {label!r}: {', '.join(category_of)}")
                segments = [None if m is None else rle_text(m) for m in _along(track, timeline)]
                score = sum(1.0 if r.get("score") is None else float(r["score"]) for r in track) / len(track)
                where = {"video_id": video_of[asset]["id"], "category_id": category_of[label]}
                yield where | {"segmentations": segments, "score": score}

    return write_json_list(path, results())


def _merge_sorted(
    frames: Iterator[tuple[str, list[Row]]], tracks: Iterator[tuple[str, list[Row]]]
) -> Iterator[tuple[str, list[Row], list[Row]]]:
    """Both sides' rows of each asset, from two streams sorted by asset_id; either may lack an asset."""
    last = ""
    left, right = next(frames, None), next(tracks, None)
    while left or right:
        asset = min(side[0] for side in (left, right) if side)
        if asset < last:
            raise UsageError(f"asset {asset} comes after {last}: sort both frames and tracks by asset_id")
        last = asset
        own_frames, own_tracks = [], []
        if left and left[0] == asset:
            own_frames, left = left[1], next(frames, None)
        if right and right[0] == asset:
            own_tracks, right = right[1], next(tracks, None)
        yield asset, own_frames, own_tracks


def _tracks(rows: list[Row]) -> list[list[Row]]:
    """Rows of one video, track by track, in the order in which tracks begin; rows without a visible mask are left out."""
    tracks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: int(r["frame_index"])):
        if row.get("visible") is False:
            continue
        if row.get("mask") is None:
            raise UsageError(f"track {row['track_id']} has no mask on frame {row['frame_index']}: export it as mot")
        tracks.setdefault(str(row["track_id"]), []).append(row)
    return list(tracks.values())


def _along(track: list[Row], timeline: list[int]) -> list[Any]:
    masks = {int(r["frame_index"]): r["mask"] for r in track}
    strange = masks.keys() - set(timeline)
    if strange:
        raise UsageError(f"track {track[0]['track_id']} is on frame {min(strange)}, which the video's timeline lacks")
    return [masks.get(index) for index in timeline]


def _annotation(track: list[Row], timeline: list[int], height: int, width: int) -> dict[str, Any]:
    """Ground truth has uncompressed run lengths: the format's readers take no other."""
    from pycocotools import mask as rle

    boxes = {int(r["frame_index"]): r["box"] for r in track}
    segments: list[Any] = []
    areas: list[Any] = []
    for mask in _along(track, timeline):
        size = None if mask is None else [int(v) for v in mask["size"]]
        if size not in (None, [height, width]):
            raise UsageError(f"track {track[0]['track_id']} has a mask of {size}, its video is {[height, width]}")
        segments.append(None if mask is None else {"size": size, "counts": rle_run_lengths(mask["counts"])})
        areas.append(None if mask is None else int(rle.area(rle_text(mask))))
    return {
        "segmentations": segments,
        "areas": areas,
        "bboxes": [xywh(boxes[i]) if i in boxes else None for i in timeline],
        "iscrowd": 0,
        "height": height,
        "width": width,
        "length": len(timeline),
        "track_id": str(track[0]["track_id"]),
    }


def _size(asset: str, frames: list[Row], tracks: list[Row], sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of a video: that of its masks, which are in pixels of the frame, else of its stored frames."""
    for row in tracks:
        if row.get("mask") is not None:
            return int(row["mask"]["size"][0]), int(row["mask"]["size"][1])
    for row in frames:
        return int(row["height"]), int(row["width"])
    if asset in sizes:
        return sizes[asset][1], sizes[asset][0]
    raise UsageError(f"asset {asset} has neither a frame nor a mask that tells its size")
