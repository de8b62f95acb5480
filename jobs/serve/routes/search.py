"""`search`, and `frames` for browsing: pages of frames under a filter."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query

from jobs.serve.context import Context
from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import Hit, Page, SearchRequest
from jobs.serve.safety import restricted_filter
from pipelines.lake import Lake
from pipelines.lake.query import SCORE
from pipelines.lake.sql import equals, one_of
from pipelines.search.run import (
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
        limit = _depth(context, body.offset, body.limit)
        where = restricted_filter(body.where)
        column = await context.pick(body.model, text=body.text is not None, stored=True)
        vector = await context.query_vector(column, body)

        def find() -> Page:
            split = checked_split(context.lake, where)
            k = body.offset + limit + 1
            hits = nearest_hits(context.lake, column.name, vector, k, split, exact=body.exact, other_than=body.frame_id)
            end = body.offset + limit
            capped = end >= context.settings.limits.results
            return Page(
                hits=[hit_of(row) for row in hits.slice(body.offset, limit).to_pylist()],
                offset=body.offset,
                next_offset=end if hits.num_rows > end and not capped else None,
                capped=capped and hits.num_rows > end,
                model=column.spec,
                lake_version=lake_version(context),
            )

        return await asyncio.to_thread(find)

    @api.get("/frames")
    async def frames(
        where: str | None = Query(None, max_length=2000),
        asset_id: str | None = Query(None, max_length=200, pattern=r"^[A-Za-z0-9_.-]+$"),
        limit: int = Query(100, ge=1, le=500),
        offset: int = Query(0, ge=0, le=10**12),
    ) -> Page:
        """Frames as they lie in the lake, under a filter; or those of one asset, in order of time."""
        condition = restricted_filter(where)
        return await asyncio.to_thread(_browse, context, condition, asset_id, limit, offset)

    return api


def _browse(context: Context, where: str | None, asset_id: str | None, limit: int, offset: int) -> Page:
    condition, owners = _condition(context.lake, where, asset_id)
    if asset_id is not None:
        rows = context.lake.read("frames", FRAME_COLUMNS, filter=condition)
        total, rows = rows.num_rows, rows.sort_by("frame_index").slice(offset, limit + 1)
    else:
        rows = _window(context.lake, condition, owners, offset, limit + 1)
        total = _count(context.lake, condition, owners) if offset == 0 else None
    hits = with_assets(context.lake, rows.append_column(SCORE, pa.nulls(rows.num_rows, pa.float32())))
    return Page(
        hits=[hit_of(row) for row in hits.slice(0, limit).to_pylist()],
        offset=offset,
        next_offset=offset + limit if rows.num_rows > limit else None,
        total=total if offset == 0 else None,
        lake_version=lake_version(context),
    )


def _condition(lake: Lake, where: str | None, asset_id: str | None) -> tuple[str | None, pa.Array | None]:
    """A condition over frames, and where too many assets are asked for to be listed in it, their ids beside it."""
    split = checked_split(lake, where)
    parts = [f"({split.frames})"] if split.frames else []
    if asset_id is not None:
        parts.append(equals("asset_id", asset_id))
    owners = None
    if split.assets is not None:
        batches = list(lake.scan("assets", ["asset_id"], filter=split.assets))
        owners = pa.concat_arrays([b["asset_id"] for b in batches]) if batches else pa.array([], pa.string())
        if len(owners) <= MOST_LISTED_ASSETS:
            parts.append(one_of("asset_id", owners.to_pylist()))
            owners = None
    return " AND ".join(parts) or None, owners


def _window(lake: Lake, condition: str | None, owners: pa.Array | None, offset: int, length: int) -> pa.Table:
    """`length` rows of frames from `offset` on, as they lie in the lake."""
    if owners is None:
        return lake.read("frames", FRAME_COLUMNS, filter=condition, limit=length, offset=offset)
    found: list[pa.RecordBatch] = []
    # In order, or pages would overlap.
    for batch in lake.scan("frames", FRAME_COLUMNS, filter=condition, scan_in_order=True):
        inside = batch.filter(pc.is_in(batch["asset_id"], value_set=owners))
        found.append(inside.slice(offset, length))
        offset, length = max(0, offset - inside.num_rows), length - found[-1].num_rows
        if length == 0:
            break
    schema = lake.schema("frames")
    return pa.Table.from_batches(found, pa.schema([schema.field(c) for c in FRAME_COLUMNS]))


def _count(lake: Lake, condition: str | None, owners: pa.Array | None) -> int:
    if owners is None:
        return lake.count("frames", condition)
    batches = lake.scan("frames", ["asset_id"], filter=condition)
    return sum(pc.sum(pc.is_in(b["asset_id"], value_set=owners)).as_py() or 0 for b in batches)


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


def _depth(context: Context, offset: int, limit: int) -> int:
    """How many hits a page may have, that begins at `offset`. Problem 422 where pages don't reach."""
    most = context.settings.limits.results
    if offset >= most:
        raise Problem(422, "", f"Pages reach rank {most}: narrow the search with a filter.")
    return min(limit, most - offset)
