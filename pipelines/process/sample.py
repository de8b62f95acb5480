"""A few stored frames of a lake, spread evenly over it, decoded: what an op is tried on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.lake import Lake
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource


def sample_frames(
    lake: Lake, columns: list[str], count: int, where: str | None = None
) -> Iterator[tuple[str, np.ndarray | MediaError, dict[str, Any]]]:
    """Frame id, pixels (uint8 RGB (H, W, 3), or why they don't decode) and the values of `columns`, of at most `count` frames.

    UsageError when the lake has no stored picture that satisfies `where` (SQL), or lacks a column.
    """
    condition = "jpeg IS NOT NULL" + (f" AND ({where})" if where else "")
    there = lake.schema("frames").names
    if lacking := [name for name in columns if name not in there]:
        raise UsageError(
            f"frames of {lake.root} has no column {lacking[0]}, which the op reads: run what adds it first"
        )
    ids = [row for batch in lake.scan("frames", [], condition, with_row_id=True) for row in batch["_rowid"].to_pylist()]
    if not ids:
        raise UsageError(f"no stored frame of {lake.root}{' satisfies ' + where if where else ''}: process it first")
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int))]
    rows = lake.take("frames", chosen, lake.table("frames").version, ["frame_id", "jpeg", *columns]).to_pylist()
    with Sandbox(DecodeSettings(jpeg=False, pixels=True)) as sandbox:
        sources = (MediaSource(row["frame_id"], data=row["jpeg"]) for row in rows)
        for row, frame in zip(rows, sandbox.images(sources)):
            picture = frame if isinstance(frame, MediaError) or frame.pixels is None else frame.pixels
            yield row["frame_id"], picture, {name: row[name] for name in columns}  # type: ignore[misc]
