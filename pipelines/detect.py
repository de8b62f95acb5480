"""The detect op: whole pictures in, boxes out, each with exactly one prompt; and the rows of `detections`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipelines.frames import NATIVE, drop_views, is_frame, view_pixels
from pipelines.lake import SCHEMAS
from pipelines.recipe import Detect
from vfm_ops.detect import load_detector
from vfm_ops.media.view import View

DETECTED = "detected"
NATIVE_VIEW = View(fit="native")
_BOXES = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", pa.list_(pa.float32(), 4))]))


class DetectFrames:
    """Op: adds the list column `detected` to working tables and drops their whole pictures. Boxes are xyxy in pixels of the
    stored frame."""

    def __init__(self, settings: Detect, device: str) -> None:
        self.settings = settings
        self.detector = load_detector(settings.model, device=device)

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Tables in, tables out, in order."""
        for rows in tables:
            yield self(rows)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One table."""
        frames = is_frame(rows)
        found: list[list[dict] | None] = [None] * rows.num_rows
        chosen = np.flatnonzero(frames.to_numpy())
        if len(chosen):
            table = rows.filter(frames)
            pictures = view_pixels(table, NATIVE, NATIVE_VIEW)
            s = self.settings
            results = self.detector.detect(list(pictures), s.prompts, thresholds=s.threshold, nms_iou=s.nms_iou)
            sizes = zip(table["width"].to_pylist(), table["height"].to_pylist())
            for row, picture, (width, height), result in zip(chosen, pictures, sizes, results):
                scale = np.array([width / picture.shape[1], height / picture.shape[0]] * 2, np.float32)
                found[row] = [
                    {"label": label, "score": float(score), "box": box.tolist()}
                    for label, score, box in zip(result.labels, result.scores, result.boxes * scale)
                ]
        return drop_views(rows, NATIVE).append_column(DETECTED, pa.array(found, _BOXES))


def detection_rows(frames: pa.Table, model: str) -> pa.Table:
    """Rows of `detections` from frame rows that carry `detected`."""
    columns = ["frame_id", "asset_id", "run_key", "frame_index", DETECTED]
    rows = []
    for frame in frames.select(columns).to_pylist():
        for number, box in enumerate(frame.pop(DETECTED) or []):
            identity = {"detection_id": f"{frame['frame_id']}:d{number}", "model": model, "prompt": box["label"]}
            rows.append({**frame, **identity, **box})
    return pa.Table.from_pylist(rows, SCHEMAS["detections"])
