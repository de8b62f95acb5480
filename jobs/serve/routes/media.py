"""`frames/{id}` and `assets/{id}`: pictures and videos by id alone, with range requests; and what is known of them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from jobs.serve.context import SNIFFED, Context, mime_of, without_path
from jobs.serve.problems import Problem
from jobs.serve.routes.search import file_name
from pipelines.lake.annotations import latest
from pipelines.lake.ledger import of_decoding
from pipelines.lake.sql import equals
from vfm_ops.errors import MediaError

CHUNK = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_SAID = ["label", "box", "mask", "score", "author", "source"]  # of an annotation
_TRACK_COLUMNS = ["track_id", "frame_index", "pts_s", "label", "box", "score", "visible"]
MOST_TRACK_ROWS = 200_000


def routes(context: Context) -> APIRouter:
    """Routes over the media of a lake."""
    api = APIRouter(tags=["media"])
    binary: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {}}, "description": "The whole of it."},
        206: {"content": {"application/octet-stream": {}}, "description": "The range that was asked for."},
    }

    @api.get("/frames/{frame_id}", response_class=Response, responses=binary)
    async def frame(frame_id: str, request: Request, size: Literal["full", "thumbnail"] = "full") -> Response:
        """A frame's picture; a thumbnail has at most 320 pixels a side."""
        if size == "thumbnail":
            kept = context.thumbnails.get(frame_id)
            data = await asyncio.to_thread(_thumbnail, context, frame_id) if kept is None else kept
        else:
            data = await asyncio.to_thread(context.frame_jpeg, frame_id)
        return _bytes_response(data, request)

    @api.get("/frames/{frame_id}/details")
    async def details(frame_id: str) -> dict[str, Any]:
        """What is known of a frame: its numbers, detections, tracks that pass it, and what people say of it or its asset."""
        return await asyncio.to_thread(_details, context, frame_id)

    @api.get("/assets/{asset_id}", response_class=Response, responses=binary)
    async def asset(asset_id: str, request: Request) -> Response:
        """An asset's own bytes: the image or video that was ingested."""
        return await asyncio.to_thread(_asset_response, context, asset_id, request.headers.get("range"))

    @api.get("/assets/{asset_id}/details")
    async def asset_details(asset_id: str) -> dict[str, Any]:
        """An asset's facts, shots and stored frames, in order of time."""
        return await asyncio.to_thread(_asset_details, context, asset_id)

    @api.get("/assets/{asset_id}/tracks")
    async def tracks(
        asset_id: str, limit: int = Query(MOST_TRACK_ROWS, ge=1, le=MOST_TRACK_ROWS), counted: bool = False
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Rows of an asset's tracks, without masks; of the first frames where there are more than `limit`. counted: as `rows`,
        beside how many there are (`total`)."""
        rows, total = await asyncio.to_thread(_tracks, context, asset_id, limit)
        return {"rows": rows, "total": total} if counted else rows

    return api


# -- bytes -------------------------------------------------------------------------------------------------------------


def _thumbnail(context: Context, frame_id: str) -> bytes:
    return context.thumbnails.make(frame_id, context.frame_jpeg(frame_id))


def _bytes_response(data: bytes, request: Request) -> Response:
    mime = mime_of(data)
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
    span = byte_range(request.headers.get("range"), len(data))
    if span is None:
        return Response(data, media_type=mime, headers=headers)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, headers, mime)


def _asset_response(context: Context, asset_id: str, header: str | None) -> Response:
    source, _ = context.asset_source(asset_id)
    # Opened once: what is sniffed is what is sent, though the path may lead elsewhere a moment later.
    try:
        file = source.open()
    except MediaError as e:
        raise without_path(e, source) from e
    try:
        mime = mime_of(file.read(SNIFFED))
        size = file.seek(0, os.SEEK_END)
        span = byte_range(header, size)
    except BaseException:
        file.close()
        raise
    start, end = span or (0, size - 1)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start + 1),
        "Cache-Control": "private, max-age=3600",
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return StreamingResponse(_chunks(file, start, end), 206 if span else 200, headers, mime)


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = end - start + 1
        while left > 0 and (data := file.read(min(CHUNK, left))):
            left -= len(data)
            yield data


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None for none, or for several ranges (all is sent then, as RFC 9110 allows).

    Problem 416 for a range that lies outside.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last or size - 1), size - 1)
    if start >= size or start > end:
        raise Problem(416, "", f"The file has {size} bytes; that range lies outside.")
    return start, end


# -- facts -------------------------------------------------------------------------------------------------------------


def _details(context: Context, frame_id: str) -> dict[str, Any]:
    columns = ["frame_id", "asset_id", "shot_id", "frame_index", "pts_s", "width", "height", "quality", "salvaged"]
    row = context.frame_row(frame_id, columns)
    owner = context.row(
        "assets", "asset_id", row["asset_id"], ["asset_id", "uri", "member", "media_type", "caption", "label"]
    )
    wanted = ["detection_id", "model", "prompt", "label", "score", "box"]
    detections = context.lake.read("detections", wanted, filter=equals("frame_id", frame_id)).to_pylist()
    passing = f"{equals('asset_id', row['asset_id'])} AND {equals('frame_index', row['frame_index'])}"
    tracks = context.lake.read("tracks", ["track_id", "label", "box", "mask", "score", "visible"], filter=passing)
    said = f"{equals('asset_id', row['asset_id'])} AND ({equals('frame_index', row['frame_index'])} OR frame_index IS NULL)"
    annotations = [a for a in latest(context.lake, [said], _SAID).values() if not a["removed"]]
    return {
        **row,
        "media_type": owner["media_type"],
        "name": file_name(owner),
        "caption": owner["caption"],
        "label": owner["label"],
        "detections": sorted(detections, key=lambda d: -(d["score"] or 0)),
        "tracks": tracks.to_pylist(),
        "annotations": [
            {k: a[k] for k in ("annotation_id", "version", "object_id", "kind", *_SAID)} for a in annotations
        ],
    }


def _asset_details(context: Context, asset_id: str) -> dict[str, Any]:
    columns = ["asset_id", "uri", "member", "media_type", "size", "caption", "label"]
    row = context.row("assets", "asset_id", asset_id, columns)
    own = equals("asset_id", asset_id)
    decoded = " AND ".join(filter(None, (own, of_decoding(context.lake))))
    probe = context.lake.read("ledger", ["probe"], filter=decoded).to_pylist()
    shots = context.lake.read("shots", ["shot_id", "start_frame", "end_frame", "start_s", "end_s", "score"], filter=own)
    frames = context.lake.read("frames", ["frame_id", "frame_index", "pts_s", "width", "height"], filter=own)
    return {
        "asset_id": asset_id,
        "name": file_name(row),
        "media_type": row["media_type"],
        "size": row["size"],
        "caption": row["caption"],
        "label": row["label"],
        "probe": probe[0]["probe"] if probe else None,
        "shots": shots.sort_by("start_s").to_pylist(),
        "frames": frames.sort_by("frame_index").to_pylist(),
    }


def _tracks(context: Context, asset_id: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    context.row("assets", "asset_id", asset_id, ["asset_id"])
    rows = context.lake.read("tracks", _TRACK_COLUMNS, filter=equals("asset_id", asset_id))
    first = rows.sort_by([("frame_index", "ascending"), ("track_id", "ascending")]).slice(0, limit)
    ordered = first.sort_by([("track_id", "ascending"), ("frame_index", "ascending")])
    return ordered.to_pylist(), rows.num_rows
