"""The tables of a lake: their Arrow schemas, and the deterministic ids that tie them together.

An asset is a source file or one member of an archive. Everything derived from it carries its `asset_id` and `run_key`
(recipe and attempt), so that rows of a run that never settled can be told from rows that count.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipelines.lake.sql import literal
from vfm_ops.arrow_types import BOX, MASK

FORMAT_VERSION = 2

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

# Why a frame has no value of a model: JSON {column: sentence}; under "jpeg", a stored picture that does not decode, which no
# model can be given. It tells "can't be" from "not yet".
ERROR = pa.field("error", pa.string())

OP = pa.field("op", pa.string())  # the op's name in the recipe

_OWNER = [pa.field("asset_id", pa.string(), False), pa.field("run_key", pa.string(), False)]

# What Lance keeps unique among rows that are inserted by a merge on it, whoever else inserts meanwhile.
_PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}

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
            ("asset_no", pa.int64()),  # dense, never reused: the bit that stands for the asset in `coverage`
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
            pa.field("phash", pa.uint64(), metadata={"op": "phash"}),
            pa.field("quality", QUALITY, metadata={"op": "quality"}),
            ("salvaged", pa.bool_()),  # from a damaged file, before the damage
            ERROR,
            ("asset_no", pa.int64()),
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
            OP,
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
            OP,
        ]
    ),
    # What became of an asset when it was decoded (`op` null, `recipe` the recipe's hash), and in each op on videos (`op` its
    # name in the recipe, `recipe` its key).
    "ledger": pa.schema(
        [
            *_OWNER,
            ("recipe", pa.string()),
            ("attempt", pa.int32()),
            ("etag", pa.string()),
            ("shots", pa.int64()),
            ("frames", pa.int64()),  # made under this recipe, those that a filter dropped included
            ("detections", pa.int64()),  # null since format 2
            ("tracks", pa.int64()),  # null since format 2
            ("probe", PROBE),
            ("dropped", pa.string()),  # JSON: {reason: frames that were dropped when it was decoded}
            ("run_id", pa.string()),
            ("finished_at", pa.timestamp("us", "UTC")),
            OP,
            ("rows", pa.int64()),  # of the op's table
            ("asset_no", pa.int64()),
            ("wanted", pa.list_(pa.int32())),  # index of each frame that the recipe's sampling wants of a video
        ]
    ),
    # What ops on frames have done: bits of asset numbers (`pipelines.lake.coverage`), appended last. An empty `key` takes the
    # assets back from every key, since their frames are made anew.
    "coverage": pa.schema(
        [
            pa.field("key", pa.string(), False),
            OP,
            ("segment", pa.int32()),
            ("assets", pa.binary()),
            ("run_id", pa.string()),
            ("finished_at", pa.timestamp("us", "UTC")),
        ]
    ),
    # What each op's values in this lake are of; of several rows of an op the last one counts.
    "keys": pa.schema(
        [
            pa.field("op", pa.string(), False),
            pa.field("key", pa.string(), False),
            ("name", pa.string()),
            ("version", pa.int32()),
            ("settings", pa.string()),  # JSON
            ("digest", pa.string()),
            ("unit", pa.string()),
            ("table", pa.string()),
            ("columns", pa.list_(pa.string())),
            ("reads", pa.list_(pa.string())),
            ("adopted", pa.bool_()),  # of an older format, which did not say all of this
            ("recorded_at", pa.timestamp("us", "UTC")),
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
            OP,
            ("asset_no", pa.int64()),
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
    # What people and imports say: a row a version of an annotation, the last one counts (`pipelines.lake.annotations`).
    "annotations": pa.schema(
        [
            pa.field("annotation_id", pa.string(), False, metadata=_PRIMARY_KEY),
            pa.field("version", pa.int32(), False, metadata=_PRIMARY_KEY),  # from 1
            ("removed", pa.bool_()),  # the annotation is gone from this version on; the row has no values
            pa.field("asset_id", pa.string(), False),
            ("asset_no", pa.int64()),  # of the source that was looked at: a changed file has another
            ("frame_id", pa.string()),  # null where the whole asset is meant; a video's need not be a row of `frames`
            ("frame_index", pa.int64()),
            ("pts_s", pa.float64()),
            ("object_id", pa.string()),  # the same on every frame of an object
            ("kind", pa.string()),  # label, box, mask, track, tag, verdict
            ("label", pa.string()),
            ("box", BOX),
            ("mask", MASK),
            ("score", pa.float32()),  # null where a person said so
            ("author", pa.string()),
            ("source", pa.string()),  # 'person', 'vfm segment sam2:pocket', 'import coco FILE'
            ("prompts", pa.string()),  # JSON: what was clicked, so that it can be done again
            ("created_at", pa.timestamp("us", "UTC")),
            ("write_id", pa.string()),  # of the call that wrote it
        ]
    ),
    # One row: who may write. Taken and renewed by compare-and-swap, which Lance's own commits give on any store. `heartbeat`
    # is the holder's clock, for people to read; whether the holder lives is judged by whether `beat` moves.
    "lease": pa.schema(
        [
            pa.field("name", pa.string(), False),
            ("run_id", pa.string()),
            ("host", pa.string()),
            ("pid", pa.int64()),
            ("pid_started", pa.float64()),
            ("heartbeat", pa.float64()),
            ("epoch", pa.int64()),  # takeovers so far
            ("beat", pa.int64()),
            ("boot_id", pa.string()),
            ("pid_namespace", pa.string()),
            ("clean", pa.bool_()),  # given back by a run that ended well: the next one need not fence
        ]
    ),
}

# Frames that a filter dropped, whole, so that a looser one brings them back: as `frames`, and why.
DROPPED = [pa.field("reason", pa.string()), pa.field("op", pa.string()), pa.field("op_key", pa.string())]
SCHEMAS["dropped"] = pa.schema([*SCHEMAS["frames"], *DROPPED])

# Added to by anyone at any time, without a lease, and so not fenced.
UNLEASED = ("annotations",)

# Written by a run, swept when that run never settled; in the order in which they are committed.
CHILD_TABLES = ("shots", "frames", "dropped", "detections", "tracks")


def make_asset_id(uri: str, member: str | None = None) -> str:
    """Id of a source: the same for the same place, on every run. 128 bits of BLAKE2b, hex."""
    return hashlib.blake2b(f"{uri}\0{member or ''}".encode(), digest_size=16).hexdigest()


def make_frame_id(asset_id: str, frame_index: int) -> str:
    """Id of a frame: its asset and its index in presentation order."""
    return f"{asset_id}:{frame_index}"


def make_annotation_id(asset_id: str, frame_index: int | None, kind: str, object_id: str) -> str:
    """Id of what is said of an object in one place: the same whoever says it, as often as it is said."""
    place = f"{asset_id}\0{'' if frame_index is None else frame_index}\0{kind}\0{object_id}"
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


def new_run_id() -> str:
    """Id of a run: UTC time of its start, and six random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def facts_of(field: pa.Field) -> dict[str, str]:
    """What a column says of who fills it: its metadata, as text."""
    return {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}


def table_schema(table: Any, unit: str) -> pa.Schema:
    """Schema of an op's own table (`vfm_ops.op.Table`) in a lake, whose rows are of a frame or of a video."""
    frame = (
        [pa.field(table.id, pa.string(), False), pa.field("frame_id", pa.string(), False)] if unit == "frame" else []
    )
    number = [pa.field("frame_index", pa.int64())] if unit == "frame" else []
    return pa.schema([*frame, *_OWNER, *number, *table.columns.items(), OP])


def make_run_key(recipe_hash: str, attempt: int) -> str:
    """What ties derived rows to the ledger or quarantine row that settled them."""
    return f"{recipe_hash}.{attempt}"


def wants_value(frames: pa.Schema, column: str) -> str:
    """SQL over `frames`: rows that still want a value of a model's or an op's column. Undecodable is not "not yet"."""
    blind = (frames.field(column).metadata or {}).get(b"reads") == b"columns"  # an op that needs no picture
    pending = f"{column} IS NULL" + ("" if blind else " AND jpeg IS NOT NULL")
    if ERROR.name not in frames.names:
        return pending
    excused = " OR ".join(f"contains({ERROR.name}, {literal(json.dumps(name))})" for name in (column, "jpeg"))
    return f"{pending} AND ({ERROR.name} IS NULL OR NOT ({excused}))"


def with_nulls(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of that schema from at least one column, arrays or lists of equal length; the columns not given are null."""
    count = len(next(iter(columns.values())))
    return pa.table([columns[f.name] if f.name in columns else _nulls(count, f.type) for f in schema], schema)


_SMALL = 32  # rows of a working table


def _nulls(count: int, kind: pa.DataType) -> pa.Array:
    """Nulls. Few are a part of the same ones each time: those of a picture's pixels are megabytes that are zeroed."""
    return _small_nulls(kind).slice(0, count) if count <= _SMALL else pa.nulls(count, kind)


@lru_cache(maxsize=128)
def _small_nulls(kind: pa.DataType) -> pa.Array:
    return pa.nulls(_SMALL, kind)
