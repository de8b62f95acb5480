"""Rows shaped like the lake's tables, of moving rectangles whose masks, boxes and ids are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

HEIGHT, WIDTH = 60, 90


def rectangle(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in coded["size"]], "counts": coded["counts"].decode()}


def track_rows(assets: tuple[str, ...] = ("a", "b"), frames: int = 10) -> list[dict[str, Any]]:
    """Two objects a video, one of each label, that move and never touch."""
    rows = []
    for asset in assets:
        for name, label, y in (("0", "person", 4), ("1", "car", 34)):
            for t in range(frames):
                x = 5 + 3 * t
                rows.append(
                    {
                        "asset_id": asset, "track_id": f"{asset}:{name}", "frame_index": t, "pts_s": t / 10,
                        "label": label, "box": [float(x), float(y), float(x + 20), float(y + 15)],
                        "mask": encode(rectangle(x, y, 20, 15)), "score": 0.9, "visible": True,
                    }
                )  # fmt: skip
    return rows


def frame_rows(assets: tuple[str, ...] = ("a", "b"), frames: int = 10) -> list[dict[str, Any]]:
    return [
        {"frame_id": f"{a}:{t}", "asset_id": a, "frame_index": t, "pts_s": t / 10, "width": WIDTH, "height": HEIGHT}
        for a in assets
        for t in range(frames)
    ]


def detection_rows() -> list[dict[str, Any]]:
    return [
        {"frame_id": f"{r['asset_id']}:{r['frame_index']}", "label": r["label"], "score": r["score"], "box": r["box"]}
        for r in track_rows()
    ]
