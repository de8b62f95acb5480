"""`detect`, `segment` sessions and `track` sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, UploadFile
from starlette.responses import StreamingResponse

from jobs.serve.annotations import check_stored, keep, segmented_rows, tracked_rows
from jobs.serve.context import Context, without_path
from jobs.serve.problems import Problem, cause_of, problem_of
from jobs.serve.routes.schemas import (
    DetectRequest,
    FillHoleArea,
    SegmentClick,
    SegmentEverything,
    SegmentOpen,
    TrackClear,
    TrackOpen,
    TrackPrompt,
    TrackRemove,
    TrackStore,
)
from jobs.serve.sessions import checked_session_id, new_session_id, unknown_session

NDJSON = "application/x-ndjson"


def routes(context: Context) -> APIRouter:
    """All of them; each says so when the server was started without such a model."""
    api = APIRouter()
    _detect_routes(api, context)
    _segment_routes(api, context)
    _track_routes(api, context)
    _prompt_routes(api, context)
    _stream_routes(api, context)
    _store_routes(api, context)
    return api


def _detect_routes(api: APIRouter, context: Context) -> None:
    @api.post("/detect", tags=["detect"])
    async def detect(body: DetectRequest) -> dict[str, Any]:
        """Boxes of what the prompts name, best first; xyxy in pixels of the image."""
        spec = body.model or next(iter(context.detect), None)
        if spec not in context.detect:
            known = ", ".join(context.detect) or "none: start the server with --detect MODEL"
            raise Problem(501 if not context.detect else 400, "no such model", f"Detectors here: {known}.")
        image = await context.image_bytes(body.image, body.frame_id)
        (found,) = await context.detect[spec].detect.remote([image], body.prompts, body.threshold, body.limit)
        context.metrics.items.labels("detect").inc()
        return {"model": spec, **found}


def _segment_routes(api: APIRouter, context: Context) -> None:
    @api.post("/segment/sessions", tags=["segment"], status_code=201)
    async def open_session(body: SegmentOpen) -> dict[str, Any]:
        """Encodes an image or a frame, once; clicks are then answered from it until the session expires."""
        handle = _handle(context.segment, "segment")
        image = await context.image_bytes(body.image, body.frame_id)
        session = new_session_id()
        facts = await handle.options(session_id=session).open.remote(session, image, body.frame_id)
        context.metrics.items.labels("segment").inc()
        return {"session": session, **facts}

    @api.post("/segment/sessions/{session}", tags=["segment"])
    async def click(session: str, body: SegmentClick) -> dict[str, Any]:
        """Masks of the object under points, in a box, or of a coarse mask: candidates, best first; masks are COCO RLE."""
        handle, session = _handle(context.segment, "segment"), checked_session_id(session)
        check_stored(body.store, context.settings.selections)
        replica = handle.options(session_id=session)
        candidates = await replica.segment.remote(session, body.model_dump(exclude={"store"}))
        stored = await _kept(context, replica, session, candidates, body)
        return {"session": session, "candidates": candidates} | stored

    @api.post("/segment/sessions/{session}/everything", tags=["segment"])
    async def everything(session: str, body: SegmentEverything) -> dict[str, Any]:
        """Masks of every object that a grid of points finds, best first."""
        handle, session = _handle(context.segment, "segment"), checked_session_id(session)
        check_stored(body.store, context.settings.selections)
        replica = handle.options(session_id=session)
        masks = await replica.everything.remote(session, body.model_dump(exclude={"store"}))
        return {"session": session, "masks": masks} | await _kept(context, replica, session, masks, body)

    @api.delete("/segment/sessions/{session}", tags=["segment"], status_code=204)
    async def close_session(session: str) -> None:
        """Forgets a session now."""
        await _close(context.segment, "segment", session)


def _track_routes(api: APIRouter, context: Context) -> None:
    @api.post("/track/sessions", tags=["track"], status_code=201)
    async def open_session(body: TrackOpen) -> dict[str, Any]:
        """A session over a video of the lake."""
        handle = _handle(context.track, "track")
        source, media_type = context.asset_source(body.asset_id)
        if media_type != "video":
            raise Problem(422, "", "This asset is not a video.")
        try:
            return await _open(handle, source.to_tuple(), body.fill_hole_area, body.non_overlap_masks, body.asset_id)
        except Exception as error:
            raise without_path(cause_of(error), source) from error

    @api.post("/track/uploads", tags=["track"], status_code=201)
    async def upload(
        file: Annotated[UploadFile, File()],
        fill_hole_area: FillHoleArea = 0,
        non_overlap_masks: bool = False,
    ) -> dict[str, Any]:
        """A session over an uploaded video."""
        handle = _handle(context.track, "track")
        source = ("the uploaded video", None, None, await file.read())
        return await _open(handle, source, fill_hole_area, non_overlap_masks)


def _stream_routes(api: APIRouter, context: Context) -> None:
    @api.get(
        "/track/sessions/{session}/stream",
        tags=["track"],
        response_class=StreamingResponse,
        responses={200: {"content": {NDJSON: {}}, "description": "One JSON object a line, one line a frame."}},
    )
    async def stream(
        session: str,
        frames: int = Query(100_000, ge=1, le=100_000),
        start_frame_idx: int | None = Query(None, ge=0, le=10_000_000),
        reverse: bool = False,
    ) -> StreamingResponse:
        """Masks and boxes of all objects as newline-delimited JSON, frame by frame, while they are tracked.

        Without a start, what is not tracked yet, or was changed by a prompt since. frames: at most so many lines. reverse:
        towards the first frame. A failure on the way is the last line: {"error": problem}.
        """
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        replica = handle.options(session_id=session, stream=True)
        results = replica.stream.remote(session, frames, start_frame_idx, reverse)
        # The first result is awaited here, so that a wrong session is a status and not a broken stream.
        first = await anext(aiter(results), None)
        return StreamingResponse(_lines(first, results), media_type=NDJSON)

    @api.delete("/track/sessions/{session}", tags=["track"], status_code=204)
    async def close_session(session: str) -> None:
        """Forgets a session now."""
        await _close(context.track, "track", session)


def _prompt_routes(api: APIRouter, context: Context) -> None:
    @api.post("/track/sessions/{session}/prompts", tags=["track"])
    async def prompt(session: str, body: TrackPrompt) -> dict[str, Any]:
        """What to follow, and its mask there; on a frame that was tracked already, a correction: tracking goes on from it."""
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        return await handle.options(session_id=session).prompt.remote(session, body.model_dump())

    @api.post("/track/sessions/{session}/remove_object", tags=["track"])
    async def remove_object(session: str, body: TrackRemove) -> dict[str, Any]:
        """Forgets an object and its prompts."""
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        return await handle.options(session_id=session).remove_object.remote(session, body.object_id)

    @api.post("/track/sessions/{session}/clear_all_prompts_in_frame", tags=["track"])
    async def clear_all_prompts_in_frame(session: str, body: TrackClear) -> dict[str, Any]:
        """Takes back what was said of an object on a frame: it is tracked again from there."""
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        replica = handle.options(session_id=session)
        return await replica.clear_all_prompts_in_frame.remote(session, body.frame_index, body.object_id)

    @api.post("/track/sessions/{session}/reset_state", tags=["track"])
    async def reset_state(session: str) -> dict[str, Any]:
        """Forgets all objects and prompts."""
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        return await handle.options(session_id=session).reset_state.remote(session)


def _store_routes(api: APIRouter, context: Context) -> None:
    @api.post("/track/sessions/{session}/store", tags=["track"], status_code=201)
    async def store(session: str, body: TrackStore) -> dict[str, Any]:
        """Keeps what was tracked so far in the lake's annotations: each object on all frames where it shows, in place of what
        was kept of it before. Of a session on a video of the lake."""
        handle, session = _handle(context.track, "track"), checked_session_id(session)
        check_stored(body, context.settings.selections)
        told = await handle.options(session_id=session).objects.remote(session)
        if told["asset_id"] is None:
            raise Problem(
                422, "", "This video was sent, and is not of the lake: only what is of the lake can be stored."
            )

        def write() -> list[str]:
            rows = tracked_rows(context.lake, told, body)
            spec = context.settings.track.spec if context.settings.track else ""
            return keep(context.lake.root, rows, body.author, f"vfm serve {spec}", True)

        return {"session": session, "stored": len(await asyncio.to_thread(write))}


async def _kept(
    context: Context, replica: Any, session: str, found: list[dict[str, Any]], body: SegmentClick | SegmentEverything
) -> dict[str, Any]:
    """Stores what was found, where that is asked for: {"stored": ids}; else nothing."""
    if body.store is None:
        return {}
    author, frame_id = body.store.author, await replica.frame.remote(session)
    if frame_id is None:
        raise Problem(422, "", "This image was sent, and is not of the lake: only what is of the lake can be stored.")

    def write() -> list[str]:
        rows = segmented_rows(context.lake, frame_id, found, body)
        spec = context.settings.segment.spec if context.settings.segment else ""
        return keep(context.lake.root, rows, author, f"vfm serve {spec}", True)

    return {"stored": await asyncio.to_thread(write)}


async def _lines(first: dict[str, Any] | None, results: Any) -> AsyncIterator[bytes]:
    try:
        if first is not None:
            yield json.dumps(first).encode() + b"\n"
        async for result in results:
            yield json.dumps(result).encode() + b"\n"
    except Exception as error:
        yield b'{"error": ' + problem_of(error).body() + b"}\n"
    finally:
        results.cancel()  # the client may have hung up: tracking stops with it


async def _open(handle: Any, source: tuple[Any, ...], *settings: Any) -> dict[str, Any]:
    session = new_session_id()
    return {"session": session, **await handle.options(session_id=session).open.remote(session, source, *settings)}


async def _close(handle: Any | None, task: str, session: str) -> None:
    session = checked_session_id(session)
    if not await _handle(handle, task).options(session_id=session).close.remote(session):
        raise unknown_session()


def _handle(handle: Any | None, task: str) -> Any:
    if handle is None:
        raise Problem(501, "no such model", f"This server has no model for this: start it with --{task} MODEL.")
    return handle
