"""MOT challenge text files, as TrackEval and py-motmetrics read them.

Ground truth, one folder a video:       Results, one file a video:
    FOLDER/VIDEO/gt/gt.txt                  FOLDER/VIDEO.txt
    FOLDER/VIDEO/seqinfo.ini
    FOLDER/seqmap.txt                   (names of the videos, one a line, under a header)

A line is frame, id, left, top, width, height, confidence, class, visibility. Frames, ids and pixels count from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    names: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Write every video's tracks; returns how many videos, tracks and boxes there were.

    tracks: asset_id, track_id, frame_index, label, box, score, visible, sorted by asset_id; a video's rows are held
    together. Rows that are not visible are left out. lengths: frames of each asset, for seqinfo.ini, and for videos
    without any track; else the last frame of a track counts. classes: label -> class id; they are listed in labels.txt,
    one a line, as CVAT has it. sizes: asset -> (width, height). names: what a video's file or folder is called, else by its
    asset id. Raises UsageError for scattered rows, a label that `classes` lacks, or two videos of one name.
    """
    layout = _Layout(folder, ground_truth, classes, fps, sizes or {}, names or {})
    counts = {"videos": 0, "tracks": 0, "boxes": 0}
    lengths = dict(lengths or {})
    videos: list[str] = []
    for asset, rows in by_asset(tracks, "tracks"):
        visible = [r for r in rows if r.get("visible") is not False and r.get("box") is not None]
        visible.sort(key=lambda r: (int(r["frame_index"]), str(r["track_id"])))
        last = 1 + max(int(r["frame_index"]) for r in rows)
        length = lengths.pop(asset, last)
        if length < last:
            raise UsageError(f"asset {asset} has {length} frames, but a track on frame {last - 1}")
        videos.append(layout.name(asset))
        counts["tracks"] += layout.write_video(asset, visible, length)
        counts["boxes"] += len(visible)
    for asset, length in lengths.items():
        videos.append(layout.name(asset))
        layout.write_video(asset, [], length)
    counts["videos"] = len(videos)
    if len(set(videos)) < len(videos):
        raise UsageError(f"two videos would be written as {max(videos, key=videos.count)}: name each apart")
    if classes is not None:
        with whole_file(folder / "labels.txt") as file:
            file.write("".join(f"{label}\n" for label in sorted(classes, key=lambda label: classes[label])))
    if ground_truth:
        with whole_file(folder / "seqmap.txt") as file:
            file.write("".join(f"{name}\n" for name in ["name", *sorted(videos)]))
    return counts


@dataclass(frozen=True)
class _Layout:
    folder: Path
    ground_truth: bool
    classes: Mapping[str, int] | None
    fps: float
    sizes: Mapping[str, tuple[int, int]]
    names: Mapping[str, str]

    def name(self, asset: str) -> str:
        """What the asset's file or folder is called."""
        return self.names.get(asset) or safe_name(asset)

    def write_video(self, asset: str, rows: list[Row], length: int) -> int:
        """Write one video's boxes, in the order of `rows`; returns how many tracks they are of."""
        name = self.name(asset)
        number: dict[str, int] = {}
        file_name = f"{name}/gt/gt.txt" if self.ground_truth else f"{name}.txt"
        with whole_file(self.folder / file_name) as file:
            for row in rows:
                track = number.setdefault(str(row["track_id"]), len(number) + 1)
                left, top, width, height = xywh(row["box"])
                place = ",".join(f"{v:.3f}" for v in (left + 1, top + 1, width, height))
                score = 1.0 if self.ground_truth or row.get("score") is None else float(row["score"])
                visibility = 1 if self.ground_truth else -1
                line = f"{int(row['frame_index']) + 1},{track},{place},{score:.6g},{self._class_of(row)},{visibility}\n"
                file.write(line)
        if self.ground_truth:
            width_, height_ = self.sizes.get(asset, (0, 0))
            with whole_file(self.folder / name / "seqinfo.ini") as file:
                file.write(
                    f"[Sequence]\nname={name}\nimDir=img1\nframeRate={self.fps:g}\nseqLength={length}\n"
                    f"imWidth={width_}\nimHeight={height_}\nimExt=.jpg\n"
                )
        return len(number)

    def _class_of(self, row: Row) -> int:
        if self.classes is None:
            return PEDESTRIAN
        label = str(row["label"])
        if label not in self.classes:
            raise UsageError(f"track {row['track_id']} has the label {label!r}; classes are: {', '.join(self.classes)}")
        return self.classes[label]
