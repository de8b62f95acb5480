"""A lake of small pictures that their labels and captions tell apart, as ingest and process would have left it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from pipelines.lake import SCHEMAS, Lake

COLOURS = ("red", "green", "blue")


def picture_lake(root: Path, count: int = 48, labels: bool = True, captions: bool = True) -> Lake:
    """`count` still frames of 20 x 18 pixels, asset i has colour i % 3 as its label and in its caption."""
    lake = Lake.create(root)
    rng = np.random.default_rng(0)
    ids = [f"{i:032x}" for i in range(count)]
    jpegs = []
    for i in range(count):
        image = rng.integers(0, 80, (18, 20, 3), dtype=np.uint8)
        image[..., i % 3] += 150
        jpegs.append(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
    facts = {
        "asset_id": ids,
        "uri": [f"/pictures/{i}.jpg" for i in range(count)],
        "media_type": ["image"] * count,
        "label": [COLOURS[i % 3] for i in range(count)] if labels else [None] * count,
        "caption": [f"a {COLOURS[i % 3]} square" for i in range(count)] if captions else [None] * count,
    }
    lake.append("assets", _table("assets", facts))
    frames = {
        "frame_id": [f"{i}:0" for i in ids],
        "asset_id": ids,
        "run_key": ["r.1"] * count,
        "frame_index": [0] * count,
        "width": [20] * count,
        "height": [18] * count,
        "jpeg": jpegs,
    }
    lake.append("frames", _table("frames", frames))
    return lake


def select(lake: Lake, name: str, frame_ids: list[str]) -> None:
    """A selection of these frames, as curation writes one."""
    count = len(frame_ids)
    rows = {"selection": [name] * count, "frame_id": frame_ids, "kept": [True] * count, "rank": list(range(count))}
    lake.append("selections", _table("selections", rows))


def _table(name: str, columns: dict[str, list]) -> pa.Table:
    schema = SCHEMAS[name]
    count = len(next(iter(columns.values())))
    return pa.table([pa.array(columns.get(f.name, [None] * count), f.type) for f in schema], schema)
