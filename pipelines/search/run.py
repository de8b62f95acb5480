"""Search: a text, an image or a frame in; the nearest frames out, with where they come from.

    query ──the column's own model──▶ vector ──nearest under a filter──▶ frames ──▶ their assets' uri and type

The query is embedded by just the model, weights, runtime and precision that made the column (`columns`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake
from pipelines.lake.filters import SplitFilter, split_filter
from pipelines.lake.query import SCORE, check_filter, frame_vector, nearest_frames
from pipelines.lake.schema import SCHEMAS
from pipelines.lake.sql import one_of
from pipelines.search.columns import Column, current_first, embedding_columns, has_text_tower, load_same
from pipelines.search.result import ASSET_COLUMNS, FRAME_COLUMNS, SearchResult
from vfm_ops.errors import MediaError, UsageError, WeightsUnavailable
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.source import MediaSource

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
            raise UsageError("name one thing to search for: `text`, `image` or `frame_id`")


def search(
    lake: Lake,
    query: Query | str,
    *,
    model: str | None = None,
    where: str | None = None,
    k: int = 10,
    exact: bool = False,
) -> SearchResult:
    """The k frames most like the query, best first.

    Args:
        lake: An open lake that has embeddings.
        query: A text; or a `Query`, which may also be of an image or of one of the lake's frames. A frame is not its own hit.
        model: Spec of the embedding column to ask; without it the first one that can answer.
        where: SQL over the columns of frames, and of assets (media_type, uri, label, ...), joined by AND.
        k: How many frames, at most.
        exact: Scans all vectors, index or not.

    Returns:
        The hits, to iterate over or to look at in a notebook.

    Raises:
        UsageError: No column fits, the model's weights changed since, the query can't be embedded, or `where` is wrong.

    Example:
        >>> for hit in search(Lake.open("lake"), "a red square", k=3):
        ...     print(hit.score, hit.name)
    """
    if isinstance(query, str):
        query = Query(text=query)
    if k < 1:
        raise UsageError(f"`k` must be at least 1, not {k}")
    columns = embedding_columns(lake)
    split = checked_split(lake, where)
    column, embedder = choose_column(columns, query, model)
    if query.frame_id is not None:
        vector = frame_vector(lake, column.name, query.frame_id)
    else:
        vector = embed_query(query, embedder)
    hits = nearest_hits(lake, column.name, vector, k, split, exact=exact, other_than=query.frame_id)
    return SearchResult(column, hits, lake)


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


# -- the query's vector ------------------------------------------------------------------------------------------------


def choose_column(columns: list[Column], query: Query, model: str | None) -> tuple[Column, Any]:
    """The column that answers a query, and its embedder (None for a frame's id, which needs no model).

    UsageError for a model that no column is of, for a text where no model has a text tower, for changed weights.
    """
    if model is not None:
        named = [c for c in columns if model in (c.spec, c.name)]
        if not named:
            raise UsageError(f"no column is of model {model}; there are {', '.join(c.spec for c in columns)}")
        columns_to_try = current_first(named)
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
    adding = "embed the lake with clip:pocket (ships with vfm; generated things only) or a larger clip:..."
    hint = f"name {able[0]} as `model`" if able else f"{adding}, or search by `image`"
    names = ", ".join(c.spec for c in columns_to_try)
    raise UsageError(f"{names} can't embed a text (no text tower): {hint}")


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


# -- nearest -----------------------------------------------------------------------------------------------------------


def _nearest(lake: Lake, column: str, vector: np.ndarray, k: int, split: SplitFilter, exact: bool) -> pa.Table:
    def find(count: int, condition: str | None) -> pa.Table:
        return nearest_frames(lake, column, vector, count, condition, FRAME_COLUMNS, exact=exact)

    if split.assets is None:
        return find(k, split.frames)
    batches = list(lake.scan("assets", ["asset_id"], filter=split.assets))
    ids = pa.concat_arrays([b["asset_id"] for b in batches]) if batches else pa.array([], pa.string())
    if len(ids) <= MOST_LISTED_ASSETS:
        condition = one_of("asset_id", ids.to_pylist())
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
        rows = lake.caching().read("assets", ASSET_COLUMNS, filter=one_of("asset_id", ids)).to_pylist()
        owners = {row["asset_id"]: row for row in rows}
    for name in ("uri", "member", "media_type"):
        values = [owners.get(i, {}).get(name) for i in hits["asset_id"].to_pylist()]
        hits = hits.append_column(name, pa.array(values, pa.string()))
    return hits.select([*FRAME_COLUMNS, SCORE, "uri", "member", "media_type"])
