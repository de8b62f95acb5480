"""WebDataset shards: tar files in which `KEY.jpg` is a frame and `KEY.json` its row and what was found on it."""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import Row, safe_name, whole_file


def write_webdataset(
    folder: Path,
    frames: Iterable[Row],
    *,
    annotations: Callable[[str], Sequence[Row]] | None = None,
    shard_bytes: int = 500_000_000,
    shard_frames: int = 10_000,
) -> dict[str, int]:
    """Write `shard-000000.tar` and on; returns how many shards and frames there are.

    frames: frame_id, jpeg, and any other columns, which go to the JSON. annotations: frame_id -> rows of the frame, put
    under "detections". A shard ends after shard_frames frames, or when shard_bytes are reached. Equal rows make equal
    bytes: entries have no time and no owner. Raises UsageError for a frame without JPEG bytes.
    """
    if shard_bytes < 1 or shard_frames < 1:
        raise UsageError("shard_bytes and shard_frames must be at least 1")
    rows = iter(frames)
    counts = {"shards": 0, "frames": 0}
    row = next(rows, None)
    while row is not None:
        written = held = 0
        with _shard(folder / f"shard-{counts['shards']:06d}.tar") as tar:
            while row is not None and held < shard_frames and written < shard_bytes:
                written += _add_frame(tar, row, annotations)
                held += 1
                row = next(rows, None)
        counts["shards"] += 1
        counts["frames"] += held
    return counts


@contextmanager
def _shard(path: Path) -> Iterator[tarfile.TarFile]:
    with whole_file(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def _add_frame(tar: tarfile.TarFile, row: Row, annotations: Callable[[str], Sequence[Row]] | None) -> int:
    frame_id = str(row["frame_id"])
    if not row.get("jpeg"):
        raise UsageError(f"frame {frame_id} has no JPEG bytes: leave it out, or process with jpeg.store=true")
    key = safe_name(frame_id)
    meta = {k: v for k, v in row.items() if k != "jpeg"}
    if annotations is not None:
        meta["detections"] = [dict(r) for r in annotations(frame_id)]
    text = json.dumps(_plain(meta), sort_keys=True, allow_nan=False).encode()
    return _add(tar, f"{key}.jpg", bytes(row["jpeg"])) + _add(tar, f"{key}.json", text)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    return len(content)


def _plain(value: Any) -> Any:
    """A value as JSON has it: mappings and sequences of plain ones; NaN and infinity, which are no JSON, as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _plain(json_value(value))


def json_value(value: Any) -> Any:
    """What JSON lacks, as what it has: arrays as lists, times as ISO 8601, bytes as base64."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise UsageError(f"a value of type {type(value).__name__} can't go into a WebDataset's JSON")
