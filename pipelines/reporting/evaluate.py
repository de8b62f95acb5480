"""Scores of a lake against ground truth: boxes by COCO, masks by DAVIS, tracks by HOTA and its relatives.

A figure is only given where both sides speak of the same things; where they don't, that is said instead of a zero.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipelines.lake import Lake
from pipelines.reporting.annotated import AnnotatedLake
from pipelines.reporting.export import export, rows, tracks_of
from pipelines.reporting.names import AssetNames
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.boxes import box_map
from vfm_ops.evaluate.masks import j_and_f
from vfm_ops.evaluate.tracks import track_metrics

Frame = dict[str, Any]


def evaluate(lake: Lake, truth: Path) -> dict[str, Any]:
    """Scores against a COCO file (pictures: mAP) or a YouTube-VIS file (videos: HOTA, IDF1, MOTA, and J&F of matched tracks).

    Images and videos are matched by the file's frame and asset ids where the lake has them, else by file name. `notes`
    says in sentences what the figures leave out. Raises UsageError when the file is neither, names what the lake lacks, or
    shares no label with what was found.
    """
    try:
        data = json.loads(truth.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read the ground truth {truth}: {e}") from None
    data = data if isinstance(data, dict) else {}
    kind = "videos" if "videos" in data else "images" if "images" in data else None
    if kind is None:
        raise UsageError(f"{truth} is neither a COCO nor a YouTube-VIS file: it has no 'images' and no 'videos'")
    for key in (kind, "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise UsageError(f"{truth} has no list of {key}: is it a results file? give the annotation file")
    if not data["annotations"]:
        raise UsageError(f"{truth} has no annotation: there is nothing to be found")
    try:
        return (score_tracks if kind == "videos" else score_boxes)(lake, data)
    except (KeyError, TypeError) as e:
        raise UsageError(f"{truth} is no complete annotation file: {type(e).__name__} {e}") from e


def evaluate_by_annotations(lake: Lake, author: str | None = None) -> dict[str, Any]:
    """Scores what ops found against `annotations`, of an author or of all: detections by boxes and masks, tracks by tracks.

    Only frames that were annotated count, and all of a video that has tracks. Returns the figures of `evaluate`, of whichever
    both sides have. Raises UsageError where there are no annotations, or they and the ops speak of different things.
    """
    said = AnnotatedLake(lake, author)
    scores: dict[str, Any] = {}
    notes = [f"{said.left_out} annotated frames are not stored: nothing was found on them"] if said.left_out else []
    with tempfile.TemporaryDirectory() as folder:
        for table, format in (("detections", "coco"), ("tracks", "youtube-vis")):
            if said.count(table) and lake.count(table):
                export(said, format, truth := Path(folder) / f"{table}.json", pictures=False)
                part = evaluate(lake, truth)
                notes += part.pop("notes")
                scores |= part
    if not scores:
        raise UsageError(f"{lake.root} has no detections or tracks that its annotations could be compared with")
    return scores | {"notes": notes}


def score_boxes(lake: Lake, data: dict[str, Any]) -> dict[str, Any]:
    """Average precision of `detections` on stills, and on frames that the file names by their ids."""
    _need(lake, "detections", "a recipe that has detect")
    names = {c["id"]: str(c["name"]) for c in data["categories"]}
    frame_of = frames_of_images(lake, data["images"])
    sizes = {r["frame_id"]: (r["width"], r["height"]) for r in rows(lake, "frames", ["frame_id", "width", "height"])}
    truth: dict[Any, list[Frame]] = defaultdict(list)
    for a in data["annotations"]:
        truth[a["image_id"]].append(a)
    found: dict[str, list[Frame]] = defaultdict(list)
    wanted = set(frame_of.values())
    for row in rows(lake, "detections", ["frame_id", "label", "score", "box"]):
        if row["frame_id"] in wanted:
            found[row["frame_id"]].append(row)
    ground_truth, predictions = [], []
    for image in data["images"]:
        frame_id = frame_of[image["id"]]
        ground_truth.append(_true_boxes(truth[image["id"]], names))
        predictions.append(_found_boxes(found[frame_id], scale_between(image, sizes.get(frame_id))))
    notes = _label_notes(ground_truth, predictions, "detections")
    if absent := sum(frame_of[image["id"]] not in sizes for image in data["images"]):
        notes.append(f"{absent} of {len(data['images'])} images were not processed: all on them counts as missed")
    return box_map(ground_truth, predictions) | {"images": len(ground_truth), "notes": notes}


def frames_of_images(lake: Lake, images: list[Frame], strict: bool = True) -> dict[Any, str]:
    """Image id -> frame id: that which the file names, else the only frame of the still of that file name.

    UsageError for an image that the lake does not have; without `strict` it is left out.
    """
    named = {str(i["frame_id"]) for i in images if i.get("frame_id")}
    known = {r["frame_id"] for r in rows(lake, "frames", ["frame_id"]) if r["frame_id"] in named} if named else set()
    assets = AssetNames(lake)
    found = {}
    for i in images:
        with contextlib.nullcontext() if strict else contextlib.suppress(UsageError):
            found[i["id"]] = str(i["frame_id"]) if i.get("frame_id") in known else _frame(assets, i["file_name"])
    return found


def _frame(assets: AssetNames, file_name: str) -> str:
    """The frame of a picture: the still of that name, or frame 12 of `clip/000012.jpg`, as an export has it."""
    path = PurePosixPath(file_name)
    if path.stem.isascii() and path.stem.isdigit() and len(path.parts) > 1:
        with contextlib.suppress(UsageError):
            return f"{assets.find(str(path.parent))}:{int(path.stem)}"
    return f"{_asset(assets, [file_name])}:0"


def _true_boxes(annotations: list[Frame], names: dict[Any, str]) -> Frame:
    boxes = [_xyxy(a["bbox"]) for a in annotations]
    return {
        "boxes": boxes,
        "labels": [names[a["category_id"]] for a in annotations],
        "crowd": [a.get("iscrowd", 0) for a in annotations],
        "area": [a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations],
    }


def _found_boxes(detections: list[Frame], scale: tuple[float, float]) -> Frame:
    boxes = np.array([d["box"] for d in detections], np.float64).reshape(-1, 4) * [*scale, *scale]
    return {"boxes": boxes, "labels": [d["label"] for d in detections], "scores": [d["score"] for d in detections]}


def scale_between(image: Frame, stored: tuple[int, int] | None) -> tuple[float, float]:
    """From pixels of the stored frame to those of the ground truth. UsageError when they are of other proportions."""
    if stored is None or not (image.get("width") and image.get("height")):
        return 1.0, 1.0
    x, y = image["width"] / stored[0], image["height"] / stored[1]
    # Sides are rounded to whole pixels when a picture is shrunk.
    if abs(x - y) * max(stored) > 2.0 * max(x, y, 1.0):
        raise UsageError(
            f"{image['file_name']} has {image['width']} x {image['height']} pixels in the ground truth, but "
            f"{stored[0]} x {stored[1]} in the lake: they are not the same picture"
        )
    return x, y


def _label_notes(truth: list[Frame], found: list[Frame], what: str) -> list[str]:
    """What part of the figures is about labels that one side does not know. UsageError when they share none."""
    wanted = sorted({str(v) for image in truth for v in image["labels"]})
    given = sorted({str(v) for image in found for v in image["labels"]})
    if not given:
        return [f"nothing was found on any of the {len(truth)} images: every figure is 0 for that reason"]
    if not set(wanted) & set(given):
        raise UsageError(
            f"the ground truth and the lake's {what} share no label: {_listed(wanted)} there, {_listed(given)} here; "
            "detect with the ground truth's names as prompts, or rename its categories"
        )
    if missing := [label for label in wanted if label not in given]:
        return [f"never found, and so counted as 0: {_listed(missing)}"]
    return []


def _listed(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:5]))
    return f"{shown} and {len(labels) - 5} more" if len(labels) > 5 else shown


def score_tracks(lake: Lake, data: dict[str, Any]) -> dict[str, Any]:
    """HOTA, IDF1 and MOTA over all videos, switches a video, and J&F with tracks matched to objects by overlap.

    Labels are not compared: an object is found where its mask is, whatever it is called.
    """
    _need(lake, "tracks", "track: true")
    assets = AssetNames(lake)
    truth, found, regions, notes = {}, {}, [], []
    for video in data["videos"]:
        own = [a for a in data["annotations"] if a["video_id"] == video["id"]]
        files = [str(f) for f in video["file_names"]]
        asset_id = str(video.get("asset_id"))
        if asset_id not in assets:
            asset_id = _asset(assets, [str(PurePosixPath(files[0]).parent), files[0]])
        name, timeline = str(video["id"]), _timeline(files)
        truth[name] = [_true_frame(own, t, (video["height"], video["width"])) for t in range(len(files))]
        found[name] = list(_found_frames(tracks_of(lake, asset_id), timeline))
        if not any(f["ids"] for f in found[name]):
            notes.append(f"no object was tracked on {assets.original(asset_id)}: all of it counts as missed")
        _check_mask_sizes(assets.original(asset_id), truth[name], found[name])
        if own:
            regions.append(_matched_j_and_f(truth[name], found[name]))
    scores = track_metrics(truth, found)
    scores["IDSW_per_video"] = scores["IDSW"] / len(truth)
    if regions:
        scores["J&F"] = float(np.mean(regions))
    return scores | {"videos": len(truth), "notes": notes}


def _timeline(files: list[str]) -> list[int]:
    """Frame numbers of a video's pictures: as its file names count them from 0, else one after the other.

    YouTube-VIS itself holds every fifth frame: 00000.jpg, 00005.jpg, ...
    """
    stems = [PurePosixPath(f).stem for f in files]
    numbers = [int(s) for s in stems] if all(s.isascii() and s.isdigit() for s in stems) else []
    counted = numbers and numbers[0] == 0 and all(a < b for a, b in pairwise(numbers))
    return numbers if counted else list(range(len(files)))


def _check_mask_sizes(name: str, truth: list[Frame], found: list[Frame]) -> None:
    """UsageError when masks are of two sizes: they can't be laid over each other."""
    sizes = [{tuple(m["size"]) for f in frames for m in f["masks"]} for frames in (truth, found)]
    if all(sizes) and sizes[0] != sizes[1]:
        (a, b), (c, d) = min(sizes[0]), min(sizes[1])
        raise UsageError(
            f"masks of {name} have {b} x {a} pixels in the ground truth, but {d} x {c} in the lake: process it with "
            "jpeg.max_side=null, or export the ground truth anew"
        )


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


def _true_frame(annotations: list[Frame], t: int, size: tuple[int, int]) -> Frame:
    seen = [a for a in annotations if a["segmentations"][t]]
    masks = [_rle(a["segmentations"][t], size) for a in seen]
    return {"ids": [a["id"] for a in seen], "masks": masks, "boxes": [_box(a, t, m) for a, m in zip(seen, masks)]}


def _rle(segmentation: Any, size: tuple[int, int]) -> Frame:
    """Compressed RLE of a segmentation: polygons, run lengths, or RLE already."""
    from pycocotools import mask as rle

    if isinstance(segmentation, list):
        return dict(rle.merge(rle.frPyObjects(segmentation, *size)))
    if isinstance(segmentation["counts"], list):
        return dict(rle.frPyObjects(segmentation, *segmentation["size"]))
    return dict(segmentation)


def _box(annotation: Frame, t: int, mask: Frame) -> list[float]:
    """An object's box on a frame: that of the file, else of its mask."""
    from pycocotools import mask as rle

    boxes = annotation.get("bboxes")
    return _xyxy(boxes[t] if boxes and boxes[t] else rle.toBbox(mask).tolist())


def _found_frames(tracks: list[Frame], timeline: Iterable[int]) -> Iterator[Frame]:
    by_frame: dict[int, list[Frame]] = defaultdict(list)
    for row in tracks:
        if row["visible"] and row["mask"] is not None:
            by_frame[row["frame_index"]].append(row)
    for t in timeline:
        own = by_frame[t]
        yield {"ids": [r["track_id"] for r in own], "masks": [r["mask"] for r in own], "boxes": [r["box"] for r in own]}


def _need(lake: Lake, table: str, how: str) -> None:
    if lake.count(table) == 0:
        raise UsageError(f"{lake.root} has no {table} to score: process it with {how}")


def _asset(assets: AssetNames, names: list[str]) -> str:
    """The asset of the first of several names that the lake knows. UsageError when it knows none, or one twice."""
    for name in names[:-1]:
        with contextlib.suppress(UsageError):
            return assets.find(name)
    try:
        return assets.find(names[-1])
    except UsageError as e:
        raise UsageError(f"the ground truth names {names[-1]}: {e}") from e


def _xyxy(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y + h]
