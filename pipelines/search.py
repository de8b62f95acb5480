"""Search: a text, an image or a frame in; the nearest frames out, with where they come from.

    query ──the column's own model──▶ vector ──nearest under a filter──▶ frames ──▶ their assets' uri and type

A column's metadata names the model, weights, runtime and precision that made it; the query is embedded by just those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.filters import SplitFilter, split_filter
from pipelines.lake import Lake
from pipelines.lake.query import SCORE, check_filter, frame_vector, nearest_frames
from pipelines.lake.schema import SCHEMAS
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError, UsageError, WeightsUnavailable
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.source import MediaSource

FRAME_COLUMNS = ["frame_id", "asset_id", "frame_index", "pts_s", "width", "height"]
ASSET_COLUMNS = ["asset_id", "uri", "member", "media_type", "container", "offset", "length"]
# A filter on assets becomes a list of ids for the index to skip others; above this, results are filtered afterwards.
MOST_LISTED_ASSETS = 20_000


@dataclass(frozen=True)
class Query:
    """What to look for: exactly one of a text, an encoded image's path or URL, or a frame's id."""

    text: str | None = None
    image: str | None = None
    frame_id: str | None = None

    def __post_init__(self) -> None:
        if sum(bool(v) for v in (self.text, self.image, self.frame_id)) != 1:
            raise UsageError("name one thing to search for: a TEXT, --image PATH, or --frame ID")


@dataclass(frozen=True)
class Column:
    """An embedding column of frames, and what made it."""

    name: str
    spec: str
    digest: str
    runtime: str
    precision: str
    preprocess: str

    @classmethod
    def of(cls, field: pa.Field) -> Column:
        """From the field's metadata."""
        facts = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        runtime, precision, preprocess = (
            facts.get(name, default)
            for name, default in (("runtime", "auto"), ("precision", "auto"), ("preprocess", "fast"))
        )
        return cls(field.name, facts["spec"], facts.get("digest", ""), runtime, precision, preprocess)


@dataclass(frozen=True)
class SearchResult:
    """hits: best first; columns FRAME_COLUMNS, `score` (cosine, float32), uri, member, media_type."""

    column: Column
    hits: pa.Table


def search(
    lake: Lake, query: Query, *, model: str | None = None, where: str | None = None, k: int = 10, exact: bool = False
) -> SearchResult:
    """The k frames most like the query, best first.

    model: spec of the embedding column; without it the first one that can answer. where: SQL over the columns of frames,
    and of assets (media_type, uri, label, ...), joined by AND. exact: scan all, index or not. A frame is not its own hit.
    Raises UsageError when no column fits, the model's weights changed since, the query can't be embedded, or `where` is wrong.
    """
    if k < 1:
        raise UsageError(f"-k must be at least 1, not {k}")
    columns = embedding_columns(lake)
    split = checked_split(lake, where)
    column, embedder = choose_column(columns, query, model)
    if query.frame_id is not None:
        vector = frame_vector(lake, column.name, query.frame_id)
    else:
        vector = embed_query(query, embedder)
    hits = nearest_hits(lake, column.name, vector, k, split, exact=exact, other_than=query.frame_id)
    return SearchResult(column, hits)


def checked_split(lake: Lake, where: str | None) -> SplitFilter:
    """A condition over columns of frames and of assets, split between the tables. UsageError when it fits neither."""
    split = split_filter(where, lake.schema("frames").names, SCHEMAS["assets"].names)
    for table, part in (("frames", split.frames), ("assets", split.assets)):
        if part is not None:
            check_filter(lake, table, part)
    return split


def nearest_hits(
    lake: Lake,
    column: str,
    vector: np.ndarray,
    k: int,
    split: SplitFilter,
    *,
    exact: bool = False,
    other_than: str | None = None,
) -> pa.Table:
    """The k frames nearest to a vector under a condition, best first: the columns of `SearchResult.hits`.

    other_than: a frame that is not to be among them, as one is not its own hit.
    """
    if other_than is None:
        return with_assets(lake, _nearest(lake, column, vector, k, split, exact))
    # One more is asked for and the frame dropped: as a filter it would be looked for in every row.
    found = _nearest(lake, column, vector, k + 1, split, exact)
    others = found.filter(pc.not_equal(found["frame_id"], other_than)) if found.num_rows else found
    return with_assets(lake, others.slice(0, k))


def embedding_columns(lake: Lake) -> list[Column]:
    """The embedding columns of a lake. UsageError when it has none."""
    fields = [f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")]
    if not fields:
        raise UsageError(f"{lake.root} has no embeddings yet: run vfm process or vfm embed --lake {lake.root}")
    return [Column.of(f) for f in fields]


# -- the query's vector ------------------------------------------------------------------------------------------------


def choose_column(columns: list[Column], query: Query, model: str | None) -> tuple[Column, Any]:
    """The column that answers a query, and its embedder (None for a frame's id, which needs no model).

    UsageError for a model that no column is of, for a text where no model has a text tower, for changed weights.
    """
    if model is not None:
        named = [c for c in columns if model in (c.spec, c.name)]
        if not named:
            raise UsageError(f"no column is of model {model}; there are {', '.join(c.spec for c in columns)}")
        columns_to_try = named
    else:
        columns_to_try = columns
    if query.frame_id is not None:
        return columns_to_try[0], None
    if query.text is None:
        return columns_to_try[0], load_same(columns_to_try[0])
    problems = []
    for column in columns_to_try:
        try:
            if has_text_tower(column):
                return column, load_same(column)
        except WeightsUnavailable as e:
            problems.append(str(e))
    if problems:
        raise WeightsUnavailable(problems[0])
    able = [] if model is None else [c.spec for c in columns if c not in columns_to_try and has_text_tower(c)]
    adding = "add one with vfm embed --model clip:pocket (ships with vfm; generated things only) or a larger clip:..."
    hint = f"use --model {able[0]}" if able else f"{adding}, or search by --image"
    names = ", ".join(c.spec for c in columns_to_try)
    raise UsageError(f"{names} can't embed a text (no text tower): {hint}")


def has_text_tower(column: Column) -> bool:
    """Whether a column's model embeds texts."""
    from vfm_ops.embed import describe_embedder

    return bool(describe_embedder(column.spec, **_settings(column)).has_text)


def load_same(column: Column, device: str = "auto") -> Any:
    """The embedder that made a column. UsageError when the weights under that name are others now."""
    from vfm_ops.embed import load_embedder

    embedder = load_embedder(column.spec, device=device, **_settings(column))
    if column.digest and embedder.digest != column.digest:
        raise UsageError(
            f"the weights of {column.spec} have digest {embedder.digest[:16]}, but column {column.name} was made with "
            f"{column.digest[:16]}: restore those weights, or embed the lake anew under another name"
        )
    return embedder


def embed_query(query: Query, embedder: Any) -> np.ndarray:
    """Unit vector, float32 (D,), of a text or an image file. UsageError for an image that can't be read."""
    if query.text is not None:
        return embedder.embed_texts([query.text])[0]
    image = query.image or ""
    try:
        rgb = decode_image(MediaSource(image).read(Limits().max_image_bytes), Limits(), image)
    except MediaError as e:
        raise UsageError(str(e).rstrip(".")) from e
    view = embedder.view.apply(rgb)
    return embedder.embed_images([view] if embedder.view.fit == "naflex" else view[None])[0]


def _settings(column: Column) -> dict[str, Any]:
    return {"runtime": column.runtime, "precision": column.precision, "preprocess": column.preprocess}


# -- nearest -----------------------------------------------------------------------------------------------------------


def _nearest(lake: Lake, column: str, vector: np.ndarray, k: int, split: SplitFilter, exact: bool) -> pa.Table:
    def find(count: int, condition: str | None) -> pa.Table:
        return nearest_frames(lake, column, vector, count, condition, FRAME_COLUMNS, exact=exact)

    if split.assets is None:
        return find(k, split.frames)
    batches = list(lake.scan("assets", ["asset_id"], filter=split.assets))
    ids = pa.concat_arrays([b["asset_id"] for b in batches]) if batches else pa.array([], pa.string())
    if len(ids) <= MOST_LISTED_ASSETS:
        listed = ", ".join(f"'{i}'" for i in ids.to_pylist()) or "''"
        condition = f"asset_id IN ({listed})"
        return find(k, f"({split.frames}) AND {condition}" if split.frames else condition)
    return _filtered_afterwards(lambda count: find(count, split.frames), k, ids)


def _filtered_afterwards(find: Callable[[int], pa.Table], k: int, ids: pa.Array) -> pa.Table:
    """The best k of some assets' frames, by looking at ever more neighbours until k are found or there are no more."""
    count = 8 * k
    while True:
        found = find(count)
        kept = found.filter(pc.is_in(found["asset_id"], value_set=ids))
        if kept.num_rows >= k or found.num_rows < count:
            return kept.slice(0, k)
        count *= 8


def with_assets(lake: Lake, hits: pa.Table) -> pa.Table:
    """Adds uri, member and media_type to rows that have FRAME_COLUMNS and `score`; the order stays."""
    ids = sorted(set(hits["asset_id"].to_pylist()))
    owners: dict[str, dict[str, Any]] = {}
    if ids:
        listed = ", ".join(f"'{i}'" for i in ids)
        rows = lake.read("assets", ASSET_COLUMNS, filter=f"asset_id IN ({listed})").to_pylist()
        owners = {row["asset_id"]: row for row in rows}
    for name in ("uri", "member", "media_type"):
        values = [owners.get(i, {}).get(name) for i in hits["asset_id"].to_pylist()]
        hits = hits.append_column(name, pa.array(values, pa.string()))
    return hits.select([*FRAME_COLUMNS, SCORE, "uri", "member", "media_type"])


# -- pictures ----------------------------------------------------------------------------------------------------------


def hit_pictures(lake: Lake, hits: pa.Table) -> list[np.ndarray]:
    """Each hit as RGB uint8 (H, W, 3): its stored JPEG; else the source, when it is a still; else a grey card."""
    ids = hits["frame_id"].to_pylist()
    if not ids:
        return []
    listed = ", ".join("'" + i.replace("'", "''") + "'" for i in ids)
    rows = lake.read("frames", ["frame_id", "jpeg"], filter=f"frame_id IN ({listed})").to_pylist()
    stored = {row["frame_id"]: row["jpeg"] for row in rows}
    reader = RowReader()
    return [_picture(lake, hit, stored.get(hit["frame_id"]), reader) for hit in hits.to_pylist()]


def _picture(lake: Lake, hit: dict[str, Any], jpeg: bytes | None, reader: RowReader) -> np.ndarray:
    try:
        if jpeg is None and hit["media_type"] == "image":
            row = lake.read("assets", ASSET_COLUMNS, filter=f"asset_id = '{hit['asset_id']}'").to_pylist()[0]
            jpeg = media_source(row, reader).read(Limits().max_image_bytes)
        if jpeg is not None:
            return decode_image(jpeg, Limits(), hit["frame_id"])
    except MediaError:
        return np.full((180, 240, 3), 128, np.uint8)  # the hit stands, though its picture is gone
    return np.full((180, 240, 3), 128, np.uint8)
