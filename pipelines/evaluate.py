"""Scores of a lake against ground truth: boxes by COCO, masks by DAVIS, tracks by HOTA and its relatives."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipelines.export import assets_by_stem, rows, tracks_of
from pipelines.lake import Lake
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.boxes import box_map
from vfm_ops.evaluate.masks import j_and_f
from vfm_ops.evaluate.tracks import track_metrics

Frame = dict[str, Any]


def evaluate(lake: Lake, truth: Path) -> dict[str, Any]:
    """Scores against a COCO file (stills: mAP) or a YouTube-VIS file (videos: HOTA, IDF1, MOTA, and J&F of matched tracks).

    Images and videos are matched by file name. Raises UsageError when the file is neither, or names what the lake lacks.
    """
    try:
        data = json.loads(truth.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read the ground truth {truth}: {e}") from None
    if "videos" in data:
        return score_tracks(lake, data)
    if "images" in data:
        return score_boxes(lake, data)
    raise UsageError(f"{truth} is neither a COCO nor a YouTube-VIS file: it has no 'images' and no 'videos'")


def score_boxes(lake: Lake, data: dict[str, Any]) -> dict[str, Any]:
    """Average precision of `detections` on stills."""
    names = {c["id"]: c["name"] for c in data["categories"]}
    assets = assets_by_stem(lake)
    wanted = {_asset(assets, i["file_name"]): i["id"] for i in data["images"]}
    truth: dict[int, list[Frame]] = defaultdict(list)
    for a in data["annotations"]:
        truth[a["image_id"]].append(a)
    found: dict[str, list[Frame]] = defaultdict(list)
    for row in rows(lake, "detections"):
        found[row["asset_id"]].append(row)
    ground_truth, predictions = [], []
    for asset_id, image_id in wanted.items():
        own = truth[image_id]
        ground_truth.append(
            {"boxes": [_xyxy(a["bbox"]) for a in own], "labels": [names[a["category_id"]] for a in own]}
        )
        mine = found[asset_id]
        boxes = np.array([d["box"] for d in mine]).reshape(-1, 4)
        predictions.append({"boxes": boxes, "labels": [d["label"] for d in mine], "scores": [d["score"] for d in mine]})
    return box_map(ground_truth, predictions)


def score_tracks(lake: Lake, data: dict[str, Any]) -> dict[str, Any]:
    """HOTA, IDF1 and MOTA over all videos, switches a video, and J&F with tracks matched to objects by overlap."""
    assets = assets_by_stem(lake)
    truth, found, regions = {}, {}, []
    for video in data["videos"]:
        own = [a for a in data["annotations"] if a["video_id"] == video["id"]]
        asset_id = video.get("asset_id") or _asset(assets, video["file_names"][0])
        name = str(video["id"])
        truth[name] = list(_true_frames(own, video["length"]))
        found[name] = list(_found_frames(tracks_of(lake, asset_id), video["length"]))
        if own:
            regions.append(_matched_j_and_f(truth[name], found[name]))
    scores = track_metrics(truth, found)
    scores["IDSW_per_video"] = scores["IDSW"] / len(truth)
    if regions:
        scores["J&F"] = float(np.mean(regions))
    return scores


def _matched_j_and_f(truth: list[Frame], found: list[Frame]) -> float:
    """Each true object takes the track that overlaps it most over the video, one to one."""
    from pycocotools import mask as rle
    from scipy.optimize import linear_sum_assignment

    objects = sorted({i for f in truth for i in f["ids"]})
    tracks = sorted({i for f in found for i in f["ids"]})
    overlap = np.zeros((len(objects), len(tracks)))
    for a, b in zip(truth, found):
        if a["ids"] and b["ids"]:
            ious = rle.iou(list(a["masks"]), list(b["masks"]), [0] * len(b["masks"]))
            overlap[np.ix_([objects.index(i) for i in a["ids"]], [tracks.index(i) for i in b["ids"]])] += ious
    chosen = {tracks[t]: objects[o] for o, t in zip(*linear_sum_assignment(-overlap))}
    true_masks = [dict(zip(f["ids"], f["masks"])) for f in truth]
    found_masks = [{chosen[i]: m for i, m in zip(f["ids"], f["masks"]) if i in chosen} for f in found]
    return float(j_and_f(true_masks, found_masks)["J&F"])


def _true_frames(annotations: list[Frame], length: int) -> Iterator[Frame]:
    for t in range(length):
        seen = [(a["id"], a["segmentations"][t], a["bboxes"][t]) for a in annotations if a["segmentations"][t]]
        yield {
            "ids": [i for i, _, _ in seen],
            "masks": [m for _, m, _ in seen],
            "boxes": [_xyxy(b) for _, _, b in seen],
        }


def _found_frames(tracks: list[Frame], length: int) -> Iterator[Frame]:
    by_frame: dict[int, list[Frame]] = defaultdict(list)
    for row in tracks:
        if row["visible"]:
            by_frame[row["frame_index"]].append(row)
    for t in range(length):
        own = by_frame[t]
        yield {"ids": [r["track_id"] for r in own], "masks": [r["mask"] for r in own], "boxes": [r["box"] for r in own]}


def _asset(assets: dict[str, str], file_name: str) -> str:
    stem = PurePosixPath(file_name).stem
    if stem not in assets:
        raise UsageError(f"the ground truth names {file_name}, which the lake does not have")
    return assets[stem]


def _xyxy(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y + h]
