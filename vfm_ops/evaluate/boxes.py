"""Detection: mean average precision as COCO defines it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError


def box_map(
    ground_truth: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], *, max_detections: int = 100
) -> dict[str, Any]:
    """COCO's average precision over IoU 0.50 to 0.95, and its companions.

    One mapping an image, in the same order: `boxes` (N, 4) xyxy in pixels, `labels` (N,) of names or numbers, and for
    predictions `scores` (N,); for ground truth also `crowd` (N,) and `area` (N,), where they are known: a crowd is neither
    missed nor found twice, and an area is that of the object, not of its box. Returns mAP, AP50, AP75, AP_small,
    AP_medium, AP_large and AR (recall at max_detections), NaN where no ground truth is of that kind, and `per_label`:
    label -> mAP. Raises UsageError when the two differ in
    length, or arrays don't fit.
    """
    if len(ground_truth) != len(predictions):
        raise UsageError(f"{len(ground_truth)} images have ground truth, {len(predictions)} have predictions")
    labels = sorted({str(v) for image in [*ground_truth, *predictions] for v in image["labels"]})
    category = {label: i + 1 for i, label in enumerate(labels)}
    truth = [row for i, image in enumerate(ground_truth) for row in _rows(image, i, category, scored=False)]
    found = [row for i, image in enumerate(predictions) for row in _rows(image, i, category, scored=True)]
    if not truth:
        raise UsageError("there is no ground-truth box: average precision is not defined")
    for i, row in enumerate(truth):
        row["id"] = i + 1
    return _evaluate(len(ground_truth), category, truth, found, max_detections)


def _rows(image: Mapping[str, Any], index: int, category: Mapping[str, int], scored: bool) -> list[dict[str, Any]]:
    boxes = np.asarray(image["boxes"], dtype=np.float64).reshape(-1, 4)
    labels = list(image["labels"])
    scores = np.asarray(image["scores"], dtype=np.float64) if scored else np.ones(len(boxes))
    if not len(boxes) == len(labels) == len(scores):
        raise UsageError(f"image {index} has {len(boxes)} boxes, {len(labels)} labels and {len(scores)} scores")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UsageError(f"image {index} has a box or score that is not finite")
    rows = []
    for (x0, y0, x1, y1), label, score in zip(boxes.tolist(), labels, scores.tolist()):
        box = [x0, y0, x1 - x0, y1 - y0]
        row = {"image_id": index + 1, "category_id": category[str(label)], "bbox": box, "area": box[2] * box[3]}
        rows.append(row | ({"score": score} if scored else {"iscrowd": 0}))
    for place, crowd in enumerate([] if scored else image.get("crowd", ())):
        rows[place]["iscrowd"] = int(crowd)
    for place, area in enumerate([] if scored else image.get("area", ())):
        rows[place]["area"] = float(area)
    return rows


def _evaluate(
    images: int, category: Mapping[str, int], truth: list[dict[str, Any]], found: list[dict[str, Any]], limit: int
) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools reports by printing, and knows of no other way.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(images)],
            "annotations": truth,
            "categories": [{"id": i, "name": name} for name, i in category.items()],
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found) if found else _empty_like(coco), "bbox")
        run.params.maxDets = [1, min(10, limit), limit]
        run.evaluate()
        run.accumulate()
        precision = run.eval["precision"]
        figures = _figures(run)
    per_label = {name: _mean(precision[:, :, i - 1, 0, 2]) for name, i in category.items()}
    return figures | {"per_label": {name: ap for name, ap in per_label.items() if not np.isnan(ap)}}


def _empty_like(coco: Any) -> Any:
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _figures(run: Any) -> dict[str, float]:
    """COCO's table, read from the accumulated arrays: precision (IoU, recall, label, area, limit), recall likewise."""
    precision, recall = run.eval["precision"], run.eval["recall"]
    at = {round(float(iou), 2): i for i, iou in enumerate(run.params.iouThrs)}
    figures = {
        "mAP": _mean(precision[:, :, :, 0, 2]),
        "AP50": _mean(precision[at[0.5], :, :, 0, 2]),
        "AP75": _mean(precision[at[0.75], :, :, 0, 2]),
    }
    for i, size in enumerate(("small", "medium", "large"), start=1):
        figures[f"AP_{size}"] = _mean(precision[:, :, :, i, 2])
    return figures | {"AR": _mean(recall[:, :, 0, 2])}


def _mean(values: np.ndarray) -> float:
    """Mean over what is defined; pycocotools marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
