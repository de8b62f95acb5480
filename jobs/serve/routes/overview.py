"""`health`, `metrics`, `lake`, the map of embeddings, and selections."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from jobs.serve.context import Context
from jobs.serve.embedding_map import MapCache
from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import SelectionRequest
from jobs.serve.selections import list_selections, make_selection
from pipelines.lake.schema import SCHEMAS, is_model_column

COUNTED = ("assets", "shots", "frames", "detections", "tracks", "quarantine", "selections")


def routes(context: Context) -> APIRouter:
    """Routes over the lake and the server as wholes."""
    api = APIRouter(tags=["lake"])
    maps = MapCache(context.lake)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server answers and its lake can be read."""
        frames = await asyncio.to_thread(context.lake.dataset, "frames")
        return {"status": "ok", "lake_version": 0 if frames is None else frames.version}

    @api.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(context.metrics.text(), media_type=context.metrics.content_type)

    @api.get("/lake")
    async def lake() -> dict[str, Any]:
        """Rows of each table, and the columns that filters may name."""
        return await asyncio.to_thread(_overview, context)

    @api.get("/map")
    async def embedding_map(
        model: str | None = Query(None, max_length=500), points: int = Query(4000, ge=10, le=20_000)
    ) -> dict[str, Any]:
        """Frames in the plane, near where their embeddings are alike: x, y in [-1, 1]."""
        column = await context.pick(model, text=False, stored=True)
        return await asyncio.to_thread(maps.get, column, points)

    @api.get("/selections")
    async def selections() -> list[dict[str, Any]]:
        """Names of selections, and how many frames each keeps."""
        return await asyncio.to_thread(list_selections, context.lake)

    @api.post("/selections", status_code=201)
    async def select(body: SelectionRequest) -> dict[str, Any]:
        """Keeps frames together under a new name, in the lake's table `selections`."""
        if not context.settings.selections:
            raise Problem(403, "", "This server writes no selections: start it without --read-only.")
        return await asyncio.to_thread(make_selection, context.lake, body.name, body.frame_ids)

    return api


def _overview(context: Context) -> dict[str, Any]:
    hidden = ("jpeg", "run_key")
    frames = [n for n in context.lake.schema("frames").names if n not in hidden and not is_model_column(n)]
    assets = [n for n in SCHEMAS["assets"].names if n not in ("uri", "container", "offset", "length")]
    frames_table = context.lake.dataset("frames")
    return {
        "tables": {table: context.lake.count(table) for table in COUNTED},
        "version": 0 if frames_table is None else frames_table.version,
        "filters": {"frames": frames, "assets": assets},
        "writable": context.settings.selections,
    }
