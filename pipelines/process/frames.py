"""The working table that flows between ops: frames on their way, and one closing row an asset.

A frame row holds the columns of `frames`, a `view:NAME` column of pixels for each op that still has to see it, `error` where an
op failed on it, and why and by which op it was dropped. After an asset's frames comes its closing row: `outcome`, JSON, null on
frame rows. `stats`, where rows go on to another worker, says on one of them what the stages before it did (`measure`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake import SCHEMAS, make_frame_id, make_run_key, with_nulls
from vfm_ops.media.frame import Frame
from vfm_ops.media.view import View

WHY_DROPPED, DROPPED_BY, STATS = "why_dropped", "dropped_by", "stats"
NOTES = [pa.field(name, pa.string()) for name in (WHY_DROPPED, DROPPED_BY, "outcome", STATS)]


@dataclass
class Outcome:
    """What became of one asset in one attempt."""

    asset_id: str
    run_key: str
    recipe: str
    attempt: int
    uri: str
    etag: str | None
    asset_no: int | None = None
    source: dict[str, Any] = field(default_factory=dict)  # the row of `assets`, for ops that decode it themselves
    frames: int = 0
    probe: dict[str, Any] | None = None
    shots: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # frames that were dropped, by reason
    wanted: list[int] | None = None  # frames of a video that the sampling wants, those that were there already included
    known: bool = False  # whether frames of it were there already
    op: str | None = None  # of an op on videos: its name in the recipe
    rows: int = 0  # of that op's table
    journal: str | None = None  # to be cleared once the asset is settled
    written: dict[str, list[str]] = field(default_factory=dict)  # fragments that an op wrote by itself, by table
    stage: str | None = None  # where it failed; None for a good asset
    error_type: str = ""
    message: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, asset: dict[str, Any], key: str, op: str | None = None) -> Outcome:
        """An outcome still to be filled, for one row of a unit. key, op: see `pipelines.lake.Work`."""
        run_key = make_run_key(key, asset["attempt"])
        name = asset["uri"] + (f"#{asset['member']}" if asset["member"] else "")
        place = ("uri", "member", "container", "offset", "length", "media_type", "etag")
        source = {name: asset[name] for name in place}
        own = (asset["asset_id"], run_key, key, asset["attempt"], name, asset["etag"], asset.get("asset_no"))
        return cls(*own, source, op=op)

    def fail(self, stage: str, error_type: str, message: str, traceback: str = "") -> None:
        """Marks it for quarantine; the first failure is kept."""
        if self.stage is None:
            self.stage, self.error_type, self.message, self.traceback = stage, error_type, message, traceback


def closing_rows(outcomes: Sequence[Outcome], views: dict[str, View]) -> pa.Table:
    """The rows that end these assets in the stream."""
    columns = {
        "asset_id": pa.array([o.asset_id for o in outcomes]),
        "run_key": pa.array([o.run_key for o in outcomes]),
        "frame_id": pa.array([""] * len(outcomes)),
        "outcome": pa.array([json.dumps(vars(o)) for o in outcomes]),
    }
    return with_nulls(working_schema(views), columns)


def working_schema(views: dict[str, View]) -> pa.Schema:
    """Columns of the working table while these views are still in it."""
    columns: list[pa.Field] = []
    for name, view in views.items():
        if view.ragged:
            columns += [pa.field(view_column(name), pa.binary()), pa.field(shape_column(name), pa.list_(pa.int32(), 3))]
        else:
            columns.append(pa.field(view_column(name), pa.binary(view.height * view.width * 3)))
    return pa.schema([*SCHEMAS["frames"], *columns, *NOTES])


def view_column(name: str) -> str:
    """Column of the pixels for one model."""
    return f"view:{name}"


def shape_column(name: str) -> str:
    """Column of (height, width, channels) of those pixels, where each frame has its own."""
    return f"view_shape:{name}"


def frame_rows(
    frames: Sequence[Frame],
    shot_ids: Sequence[str | None],
    outcomes: Sequence[Outcome],
    views: dict[str, View],
    max_side: int | None = None,
) -> pa.Table:
    """Decoded frames as rows. Each view is copied once, out of the decoder's shared memory into one Arrow buffer."""
    n = len(frames)
    sizes = [stored_size(f.width, f.height, max_side) for f in frames]
    columns: dict[str, pa.Array] = {
        "frame_id": pa.array([make_frame_id(o.asset_id, f.frame_index) for f, o in zip(frames, outcomes)]),
        "asset_id": pa.array([o.asset_id for o in outcomes]),
        "run_key": pa.array([o.run_key for o in outcomes]),
        "shot_id": pa.array(shot_ids, pa.string()),
        "frame_index": pa.array([f.frame_index for f in frames], pa.int64()),
        "pts_s": pa.array([f.pts_s for f in frames], pa.float64()),
        "width": pa.array([w for w, _ in sizes], pa.int32()),
        "height": pa.array([h for _, h in sizes], pa.int32()),
        "jpeg": pa.array([f.jpeg for f in frames], pa.large_binary()),
        "salvaged": pa.array([False] * n),
        "asset_no": pa.array([o.asset_no for o in outcomes], pa.int64()),
    }
    for name, view in views.items():
        pixels = [f.views[name] for f in frames]
        if view.ragged:
            columns[view_column(name)] = pa.array([p.tobytes() for p in pixels], pa.binary())
            columns[shape_column(name)] = pa.array([p.shape for p in pixels], pa.list_(pa.int32(), 3))
        else:
            size = view.height * view.width * 3
            buffer = pa.py_buffer(np.stack(pixels) if n else b"")
            columns[view_column(name)] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), n, [None, buffer])
    return with_nulls(working_schema(views), columns)


def stored_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Width and height of the stored JPEG, in pixels: what boxes and masks refer to."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def view_pixels(rows: pa.Table, name: str, view: View) -> np.ndarray | list[np.ndarray]:
    """The pixels of one view, without a copy: uint8 (N, H, W, 3), or a list of (h, w, C) for ragged views."""
    column = rows[view_column(name)]
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even a single one
    if view.ragged:
        shapes = rows[shape_column(name)].to_pylist()
        return [np.frombuffer(v.as_buffer(), np.uint8).reshape(s) for v, s in zip(column, shapes)]
    size = view.height * view.width * 3
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * size, column.offset * size)
    return flat.reshape(-1, view.height, view.width, 3)


def picture_rows(frames: Sequence[Frame], count: int, views: dict[str, View]) -> pa.Table:
    """Decoded pictures that the lake stores already, as `count` rows for an op: their owners are not asked for. frames: empty
    for an op that needs no pictures."""
    if not views:
        return with_nulls(working_schema({}), {"salvaged": pa.nulls(count, pa.bool_())})
    nobody = Outcome("", "", "", 0, "", None)
    return frame_rows(frames, [None] * len(frames), [nobody] * len(frames), views)


def put_column(rows: pa.Table, field: str | pa.Field, column: pa.Array) -> pa.Table:
    """The table with a column, in the place of the one of that name where it has one."""
    place = rows.schema.get_field_index(field if isinstance(field, str) else field.name)
    return rows.append_column(field, column) if place < 0 else rows.set_column(place, field, column)


def is_frame(rows: pa.Table) -> pa.ChunkedArray:
    """True on frame rows, false on closing rows."""
    return rows["outcome"].is_null()


def drop_views(rows: pa.Table, name: str) -> pa.Table:
    """The table without the pixels that a model has seen."""
    return rows.drop_columns([c for c in (view_column(name), shape_column(name)) if c in rows.schema.names])
