"""The tables of a lake: their Arrow schemas, and the deterministic ids that tie them together.

An asset is a source file or one member of an archive. Everything derived from it carries its `asset_id` and `run_key`
(recipe and attempt), so that rows of a run that never settled can be told from rows that count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 1

PROBE = pa.struct(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("rotation", pa.int16()),
        ("frames", pa.int64()),
        ("streams", pa.string()),  # which stream was taken, of how many
    ]
)
QUALITY = pa.struct([(n, pa.float32()) for n in ("sharpness", "luminance", "contrast", "entropy")])
BOX = pa.list_(pa.float32(), 4)  # xyxy, pixels of the stored frame
MASK = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])  # COCO RLE, size is (height, width)

_OWNER = [pa.field("asset_id", pa.string(), False), pa.field("run_key", pa.string(), False)]

SCHEMAS: dict[str, pa.Schema] = {
    "assets": pa.schema(
        [
            pa.field("asset_id", pa.string(), False),
            pa.field("uri", pa.string(), False),  # what to open: a file, or the archive that holds the member
            ("member", pa.string()),  # name in the archive, or row of the table; null for a file of its own
            ("container", pa.string()),  # null, 'tar', 'parquet' or 'lance'
            ("offset", pa.int64()),  # bytes into the archive, or row number in a table
            ("length", pa.int64()),
            ("media_type", pa.string()),  # 'image', 'video', or null where neither name nor content tells
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("discovered_at", pa.timestamp("us", "UTC")),
            ("caption", pa.string()),
            ("label", pa.string()),
        ]
    ),
    "shots": pa.schema(
        [
            pa.field("shot_id", pa.string(), False),
            *_OWNER,
            ("start_frame", pa.int64()),
            ("end_frame", pa.int64()),  # inclusive
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("detector", pa.string()),
            ("score", pa.float32()),
            ("motion", pa.float32()),
        ]
    ),
    "frames": pa.schema(
        [
            pa.field("frame_id", pa.string(), False),
            *_OWNER,
            ("shot_id", pa.string()),
            ("frame_index", pa.int64()),  # 0 for a still
            ("pts_s", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            # Lance would try to compress what is compressed already.
            pa.field("jpeg", pa.large_binary(), metadata={"lance-encoding:compression": "none"}),
            ("phash", pa.uint64()),
            ("quality", QUALITY),
            ("salvaged", pa.bool_()),  # from a damaged file, before the damage
        ]
    ),
    "detections": pa.schema(
        [
            pa.field("detection_id", pa.string(), False),
            pa.field("frame_id", pa.string(), False),
            *_OWNER,
            ("frame_index", pa.int64()),
            ("model", pa.string()),
            ("prompt", pa.string()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("box", BOX),
        ]
    ),
    "tracks": pa.schema(
        [
            pa.field("track_id", pa.string(), False),
            *_OWNER,
            ("frame_index", pa.int64()),
            ("pts_s", pa.float64()),
            ("label", pa.string()),
            ("box", BOX),
            ("mask", MASK),
            ("score", pa.float32()),
            ("visible", pa.bool_()),
        ]
    ),
    "ledger": pa.schema(
        [
            *_OWNER,
            ("recipe", pa.string()),
            ("attempt", pa.int32()),
            ("etag", pa.string()),
            ("shots", pa.int64()),
            ("frames", pa.int64()),
            ("detections", pa.int64()),
            ("tracks", pa.int64()),
            ("probe", PROBE),
            ("dropped", pa.string()),  # JSON: {reason: frames that a filter dropped}
            ("run_id", pa.string()),
            ("finished_at", pa.timestamp("us", "UTC")),
        ]
    ),
    "quarantine": pa.schema(
        [
            *_OWNER,
            ("uri", pa.string()),
            ("stage", pa.string()),
            ("error_type", pa.string()),
            ("message", pa.string()),
            ("traceback", pa.string()),
            ("recipe", pa.string()),
            ("attempt", pa.int32()),
            ("salvaged_frames", pa.int64()),
            ("run_id", pa.string()),
            ("finished_at", pa.timestamp("us", "UTC")),
        ]
    ),
    "runs": pa.schema(
        [
            pa.field("run_id", pa.string(), False),
            ("command", pa.string()),
            ("recipe", pa.string()),
            ("recipe_yaml", pa.string()),
            ("code_version", pa.string()),
            ("models", pa.string()),  # JSON: {spec: {digest, runtime, precision}}
            ("started_at", pa.timestamp("us", "UTC")),
            ("ended_at", pa.timestamp("us", "UTC")),
            ("counts", pa.string()),  # JSON
            ("efficiency", pa.float64()),
        ]
    ),
    "selections": pa.schema(
        [
            pa.field("selection", pa.string(), False),
            pa.field("frame_id", pa.string(), False),
            ("kept", pa.bool_()),
            ("reason", pa.string()),
            ("cluster", pa.list_(pa.int32())),  # path from the top level down
            ("rank", pa.int64()),
        ]
    ),
    # One row: who may write. Taken and renewed by compare-and-swap, which Lance's own commits give on any store.
    "lease": pa.schema(
        [
            pa.field("name", pa.string(), False),
            ("run_id", pa.string()),
            ("host", pa.string()),
            ("pid", pa.int64()),
            ("pid_started", pa.float64()),
            ("heartbeat", pa.float64()),
        ]
    ),
}

# Written by a run, swept when that run never settled; in the order in which they are committed.
CHILD_TABLES = ("shots", "frames", "detections", "tracks")


def make_asset_id(uri: str, member: str | None = None) -> str:
    """Id of a source: the same for the same place, on every run. 128 bits of BLAKE2b, hex."""
    return hashlib.blake2b(f"{uri}\0{member or ''}".encode(), digest_size=16).hexdigest()


def make_frame_id(asset_id: str, frame_index: int) -> str:
    """Id of a frame: its asset and its index in presentation order."""
    return f"{asset_id}:{frame_index}"


def make_run_key(recipe_hash: str, attempt: int) -> str:
    """What ties derived rows to the ledger or quarantine row that settled them."""
    return f"{recipe_hash}.{attempt}"


def embedding_column(spec: str) -> str:
    """Column of `frames` for a model spec: `clip:openai/clip-vit-base-patch32` -> `emb_clip_openai_clip_vit_base_patch32`."""
    return _model_column("emb", spec)


def patches_column(spec: str) -> str:
    """Column of `frames` for a model's patch tokens: `patches_...`, named as its embedding's."""
    return _model_column("patches", spec)


def is_model_column(name: str) -> bool:
    """Whether a column of `frames` holds what a model made, its vectors or its patch tokens."""
    return name.startswith(("emb_", "patches_"))


def _model_column(kind: str, spec: str) -> str:
    family, _, name = spec.partition(":")
    if "/" in name and name.startswith(("/", ".", "~")):
        name = name.rstrip("/").rsplit("/", 1)[-1]
    return f"{kind}_" + re.sub(r"[^a-z0-9]+", "_", f"{family}_{name}".lower()).strip("_")


def embedding_field(spec: str, dim: int, metadata: dict[str, str], dtype: pa.DataType | None = None) -> pa.Field:
    """Arrow field of one embedding model: FixedSizeList<float16>[dim], with the model's identity in its metadata."""
    return pa.field(embedding_column(spec), pa.list_(dtype or pa.float16(), dim), metadata={"spec": spec, **metadata})


def patches_field(spec: str, dim: int, dtype: pa.DataType | None = None) -> pa.Field:
    """Arrow field of a model's patch tokens: List<FixedSizeList<float16>[dim]>, one entry a patch, in row order."""
    return pa.field(patches_column(spec), pa.list_(pa.list_(dtype or pa.float16(), dim)))


def with_nulls(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of that schema from at least one column, arrays or lists of equal length; the columns not given are null."""
    count = len(next(iter(columns.values())))
    return pa.table([columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in schema], schema)
