"""`search`, and `frames` for browsing: pages of frames under a filter."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from fastapi import APIRouter, Query

from jobs.serve.context import Context
from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import Hit, Page, SearchRequest
from jobs.serve.safety import restricted_filter
from pipelines.lake.query import SCORE
from pipelines.search import (
    FRAME_COLUMNS,
    MOST_LISTED_ASSETS,
    checked_split,
    nearest_hits,
    with_assets,
)


def routes(context: Context) -> APIRouter:
    """Routes that list frames."""
    api = APIRouter(tags=["search"])

    @api.post("/search")
    async def search(body: SearchRequest) -> Page:
        """The frames most like a text, an image, a frame, or a box of either; best first."""
        _check_depth(context, body.offset + body.limit)
        where = restricted_filter(body.where)
        column = await context.pick(body.model, text=body.text is not None, stored=True)
        vector = await context.query_vector(column, body)

        def find() -> Page:
            split = checked_split(context.lake, where)
            k = body.offset + body.limit + 1
            hits = nearest_hits(context.lake, column.name, vector, k, split, exact=body.exact, other_than=body.frame_id)
            return _page(context, hits, body.offset, body.limit, column.spec)

        return await asyncio.to_thread(find)

    @api.get("/frames")
    async def frames(
        where: str | None = Query(None, max_length=2000),
        asset_id: str | None = Query(None, max_length=200, pattern=r"^[A-Za-z0-9_.-]+$"),
        limit: int = Query(100, ge=1, le=500),
        offset: int = Query(0, ge=0, le=100_000),
    ) -> Page:
        """Frames as they lie in the lake, under a filter; or those of one asset, in order of time."""
        condition = restricted_filter(where)
        return await asyncio.to_thread(_browse, context, condition, asset_id, limit, offset)

    return api


def _browse(context: Context, where: str | None, asset_id: str | None, limit: int, offset: int) -> Page:
    split = checked_split(context.lake, where)
    parts = [f"({split.frames})"] if split.frames else []
    if asset_id is not None:
        parts.append(f"asset_id = '{asset_id}'")
    if split.assets is not None:
        owners = context.lake.read("assets", ["asset_id"], filter=split.assets, limit=MOST_LISTED_ASSETS)
        listed = ", ".join(f"'{i}'" for i in owners["asset_id"].to_pylist()) or "''"
        parts.append(f"asset_id IN ({listed})")
    condition = " AND ".join(parts) or None
    window = {} if asset_id is not None else {"limit": limit + 1, "offset": offset}
    rows = context.lake.read("frames", FRAME_COLUMNS, filter=condition, **window)
    if asset_id is not None:
        rows = rows.sort_by("frame_index").slice(offset, limit + 1)
    hits = with_assets(context.lake, rows.append_column(SCORE, pa.nulls(rows.num_rows, pa.float32())))
    padded = _Padded(hits, offset)
    return _page(context, padded, offset, limit, None)


class _Padded:
    """A table that begins at a later rank: what `_page` cuts from a whole one."""

    def __init__(self, rows: pa.Table, offset: int) -> None:
        self._rows, self.num_rows = rows, rows.num_rows + offset

    def slice(self, offset: int, length: int) -> pa.Table:
        return self._rows.slice(0, length)


def _page(context: Context, hits: pa.Table | _Padded, offset: int, limit: int, model: str | None) -> Page:
    rows = hits.slice(offset, limit).to_pylist()
    more = hits.num_rows > offset + limit and offset + limit < context.settings.limits.results
    return Page(
        hits=[hit_of(row) for row in rows],
        offset=offset,
        next_offset=offset + limit if more else None,
        model=model,
        lake_version=lake_version(context),
    )


def lake_version(context: Context) -> int:
    """Version of the table of frames; 0 before there is one."""
    frames = context.lake.dataset("frames")
    return 0 if frames is None else frames.version


def hit_of(row: dict[str, Any]) -> Hit:
    """A row of hits as clients see it: no path of the server's, only the file's name."""
    url = "/v1/frames/" + quote(row["frame_id"])
    return Hit(
        **{name: row[name] for name in FRAME_COLUMNS},
        score=row[SCORE],
        media_type=row["media_type"],
        name=file_name(row),
        thumbnail=url + "?size=thumbnail",
        image=url,
    )


def file_name(row: dict[str, Any]) -> str:
    """The last part of a member's name or of a uri."""
    return PurePosixPath(row["member"] or row["uri"] or row["asset_id"]).name


def _check_depth(context: Context, rank: int) -> None:
    if rank > context.settings.limits.results:
        raise Problem(422, "", f"Pages reach rank {context.settings.limits.results}: narrow the search with a filter.")
