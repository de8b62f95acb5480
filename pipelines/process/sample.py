"""What an op is tried on: a few stored frames of a lake, spread evenly over it, or a whole video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.lake import Lake
from pipelines.process.decode import find_shots, shot_id
from pipelines.process.recipe import Recipe
from pipelines.process.videos import chunks, shown_video, video_decoding
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.op import VideoOp, VideoShot


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


def rows_of_video(op: VideoOp, path: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The rows that an op on videos, or on shots, gives of a file, as soon as it gives them; shots are the recipe's.

    MediaError when it does not decode, after the rows of what could be salvaged. OpError as of a run.
    """
    source, name = MediaSource(path), Path(path).name
    with Sandbox(video_decoding(recipe), 1) as sandbox:
        probe = sandbox.probe(source)
        found = [] if recipe.shots.detector == "none" else find_shots(sandbox, source, probe, recipe)[1]
        shots = [
            VideoShot(shot_id(name, n), shot.start_frame, shot.end_frame, shot.start_s, shot.end_s)
            for n, shot in enumerate(found)
        ]
        video = shown_video(name, path, probe, shots, recipe)
        state = op.begin(video)
        for chunk in chunks(sandbox.frames(source, op.wanted(video), probe), video, op.chunk_frames, recipe):
            state, rows = op.chunk(video, state, chunk)
            yield from op.checked(rows)
        yield from op.checked(op.end(video, state))
