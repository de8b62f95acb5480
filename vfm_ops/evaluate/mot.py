"""MOT challenge text files, as TrackEval and py-motmetrics read them.

Ground truth, one folder a video:       Results, one file a video:
    FOLDER/VIDEO/gt/gt.txt                  FOLDER/VIDEO.txt
    FOLDER/VIDEO/seqinfo.ini
    FOLDER/seqmap.txt                   (names of the videos, one a line, under a header)

A line is frame, id, left, top, width, height, confidence, class, visibility. Frames, ids and pixels count from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import Row, by_asset, safe_name, whole_file, xywh

# The only class that the challenge scores; everything is exported as it, unless a mapping says otherwise.
PEDESTRIAN = 1


def write_mot(
    folder: Path,
    tracks: Iterable[Row],
    *,
    ground_truth: bool,
    lengths: Mapping[str, int] | None = None,
    classes: Mapping[str, int] | None = None,
    fps: float = 30.0,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, int]:
    """Write every video's tracks; returns how many videos, tracks and boxes there were.

    tracks: asset_id, track_id, frame_index, label, box, score, visible, sorted by asset_id; a video's rows are held
    together. Rows that are not visible are left out. lengths: frames of each asset, for seqinfo.ini, and for videos
    without any track; else the last frame of a track counts. classes: label -> the challenge's class id. sizes: asset ->
    (width, height). Raises UsageError for scattered rows, or a label that `classes` lacks.
    """
    counts = {"videos": 0, "tracks": 0, "boxes": 0}
    lengths = dict(lengths or {})
    names: list[str] = []
    for asset, rows in by_asset(tracks, "tracks"):
        visible = [r for r in rows if r.get("visible") is not False and r.get("box") is not None]
        visible.sort(key=lambda r: (int(r["frame_index"]), str(r["track_id"])))
        last = 1 + max((int(r["frame_index"]) for r in rows), default=0)
        length = lengths.pop(asset, last)
        if length < last:
            raise UsageError(f"asset {asset} has {length} frames, but a track on frame {last - 1}")
        names.append(safe_name(asset))
        counts["tracks"] += _write_video(folder, asset, visible, length, ground_truth, classes, fps, sizes)
        counts["boxes"] += len(visible)
    for asset, length in lengths.items():
        names.append(safe_name(asset))
        _write_video(folder, asset, [], length, ground_truth, classes, fps, sizes)
    counts["videos"] = len(names)
    if ground_truth:
        with whole_file(folder / "seqmap.txt") as file:
            file.write("".join(f"{name}\n" for name in ["name", *sorted(names)]))
    return counts


def _write_video(
    folder: Path,
    asset: str,
    rows: list[Row],
    length: int,
    ground_truth: bool,
    classes: Mapping[str, int] | None,
    fps: float,
    sizes: Mapping[str, tuple[int, int]] | None,
) -> int:
    name = safe_name(asset)
    number: dict[str, int] = {}
    with whole_file(folder / name / "gt" / "gt.txt" if ground_truth else folder / f"{name}.txt") as file:
        for row in rows:
            track = number.setdefault(str(row["track_id"]), len(number) + 1)
            left, top, width, height = xywh(row["box"])
            score = 1.0 if ground_truth or row.get("score") is None else float(row["score"])
            place = ",".join(f"{v:.3f}" for v in (left + 1, top + 1, width, height))
            tail = f"{_class_of(row, classes)},1" if ground_truth else f"{_class_of(row, classes)},-1"
            file.write(f"{int(row['frame_index']) + 1},{track},{place},{score:.6g},{tail}\n")
    if ground_truth:
        width_, height_ = (sizes or {}).get(asset, (0, 0))
        with whole_file(folder / name / "seqinfo.ini") as file:
            file.write(
                f"[Sequence]\nname={name}\nimDir=img1\nframeRate={fps:g}\nseqLength={length}\n"
                f"imWidth={width_}\nimHeight={height_}\nimExt=.jpg\n"
            )
    return len(number)


def _class_of(row: Row, classes: Mapping[str, int] | None) -> int:
    if classes is None:
        return PEDESTRIAN
    if str(row["label"]) not in classes:
        raise UsageError(f"track {row['track_id']} has the label {row['label']!r}; classes are: {', '.join(classes)}")
    return classes[str(row["label"])]
