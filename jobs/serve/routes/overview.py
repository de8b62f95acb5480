"""`health`, `metrics`, `lake`, the map of embeddings, and selections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Query
from starlette.responses import Response

from jobs.serve.context import Context
from jobs.serve.embedding_map import MapCache
from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import MAP_POINTS, MOST_SELECTED, Lasso, SelectionRequest
from jobs.serve.selections import list_selections, make_selection
from pipelines.lake.schema import SCHEMAS
from vfm_ops.embed.columns import is_model_column

T = TypeVar("T")
COUNTED = ("assets", "shots", "frames", "detections", "tracks", "quarantine", "selections", "annotations")


def routes(context: Context) -> APIRouter:
    """Routes over the lake and the server as wholes."""
    api = APIRouter(tags=["lake"])

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

    _add_map(api, context)

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


def _add_map(api: APIRouter, context: Context) -> None:
    maps, alone = MapCache(context.lake), _Alone()

    @api.get("/map")
    async def embedding_map(
        model: str | None = Query(None, max_length=500), points: int = Query(MAP_POINTS, ge=10, le=20_000)
    ) -> dict[str, Any]:
        """Frames in the plane, near where their embeddings are alike: x, y in [-1, 1]. A sample of `total` frames."""
        column = await context.pick(model, text=False, stored=True)
        return await alone(maps.get, column, points)

    @api.post("/map/inside")
    async def inside(body: Lasso) -> dict[str, Any]:
        """All frames inside a region of the map, shown or not."""
        column = await context.pick(body.model, text=False, stored=True)
        ids = await alone(maps.inside, column, body.points, body.version, body.polygon)
        if len(ids) > MOST_SELECTED:
            raise Problem(
                422, "", f"{len(ids):,} frames lie inside, over the limit of {MOST_SELECTED:,}: draw a smaller region."
            )
        return {"frame_ids": ids}


class _Alone:
    """Runs one slow call at a time in a thread, to its end: who comes back after the deadline finds what it left, and who waits
    holds no thread."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, call: Callable[..., T], *args: Any) -> T:
        task = asyncio.create_task(self._run(call, *args))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run(self, call: Callable[..., T], *args: Any) -> T:
        async with self._lock:
            return await asyncio.to_thread(call, *args)


def _overview(context: Context) -> dict[str, Any]:
    hidden = ("jpeg", "run_key")
    frames = [n for n in context.lake.schema("frames").names if n not in hidden and not is_model_column(n)]
    assets = [n for n in SCHEMAS["assets"].names if n not in ("uri", "container", "offset", "length")]
    frames_table = context.lake.dataset("frames")
    return {
        "tables": {table: len(getattr(context.lake, table)) for table in COUNTED},
        "version": 0 if frames_table is None else frames_table.version,
        "filters": {"frames": frames, "assets": assets},
        "writable": context.settings.selections,
    }
