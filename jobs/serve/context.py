"""What the routes share: settings, the lake, handles to the models, counters; and the few questions that several ask."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from jobs.serve.lake_view import LakeView
from jobs.serve.metrics import Metrics
from jobs.serve.problems import Problem
from jobs.serve.settings import ServeSettings
from jobs.serve.uploads import Thumbnails
from pipelines.lake.sql import equals
from pipelines.search.columns import Column, embedding_columns
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.sniff import sniff

# What a browser is told of bytes, by what they begin with. Anything else is not sent.
MIME = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "heic": "image/heic",
    "mp4": "video/mp4",
    "matroska": "video/webm",
    "avi": "video/x-msvideo",
    "mpeg": "video/mpeg",
    "mpegts": "video/mp2t",
    "flv": "video/x-flv",
    "ogg": "video/ogg",
    "asf": "video/x-ms-asf",
}
SNIFFED = 512
_FRAME_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}")


@dataclass
class Context:
    """One gateway. embed: a handle; detect: a handle by spec; segment, track: a handle, or None without such a model."""

    settings: ServeSettings
    lake: LakeView
    metrics: Metrics
    thumbnails: Thumbnails
    embed: Any
    detect: dict[str, Any]
    segment: Any | None
    track: Any | None
    _able: dict[str, bool] = field(default_factory=dict)

    # -- models --------------------------------------------------------------------------------------------------------

    def columns(self) -> list[Column]:
        """Embedding columns of the lake as it is now; none in an empty one."""
        try:
            return embedding_columns(self.lake)
        except UsageError:
            return []

    def choices(self) -> list[Column]:
        """All that can embed: the lake's columns, then the models served beyond them."""
        columns = self.columns()
        known = {c.spec for c in columns}
        extra = [
            Column("", spec, "", "auto", "auto", "fast") for spec in self.settings.embed.extra if spec not in known
        ]
        return columns + extra

    def embedding(self, column: Column) -> Any:
        """The handle that embeds as a column was embedded."""
        from jobs.serve.models.embedding import column_key

        return self.embed.options(multiplexed_model_id=column_key(column))

    async def pick(self, model: str | None, *, text: bool, stored: bool) -> Column:
        """The column (or model) that answers. text: it must embed texts. stored: it must be a column of the lake.

        Problem 400 that says which there are, or which have a text tower.
        """
        asked = self.columns if stored else self.choices
        # On a local disk looking takes less than a thread's turn would; on an object store it may be a request.
        choices = asked() if self.lake.fresh_s == 0 else await asyncio.to_thread(asked)
        if not choices:
            raise Problem(409, "no embeddings", "The lake has no embeddings yet: run vfm process or vfm embed on it.")
        named = [c for c in choices if model in (None, c.spec, c.name)]
        if not named:
            raise Problem(400, "", f"No such model; there are {', '.join(c.spec for c in choices)}.")
        if not text:
            return named[0]
        for column in named:
            if await self.has_text(column):
                return column
        able = [c.spec for c in choices if c not in named and await self.has_text(c)]
        hint = f"name {able[0]}" if able else "none here has one; embed the lake with a clip, siglip or openclip model"
        raise Problem(400, "no text tower", f"{named[0].spec} can't embed a text: {hint}, or search by image.")

    async def has_text(self, column: Column) -> bool:
        """Whether a column's model embeds texts; asked of the model once."""
        if column.spec not in self._able:
            self._able[column.spec] = (await self.embedding(column).describe.remote())["has_text"]
        return self._able[column.spec]

    def check_batch(self, count: int) -> None:
        """Problem 413 for more items than one request may have."""
        if count > self.settings.limits.batch:
            raise Problem(
                413, "", f"{count} items are over the limit of {self.settings.limits.batch} a request: split them."
            )

    # -- the lake ------------------------------------------------------------------------------------------------------

    def frame_row(self, frame_id: str, columns: list[str]) -> dict[str, Any]:
        """Columns of one frame. Problem 404 when there is none."""
        return self.row("frames", "frame_id", frame_id, columns)

    def row(self, table: str, key: str, value: str, columns: list[str]) -> dict[str, Any]:
        """Columns of the row whose `key` is `value`. Problem 404 when there is none."""
        if _FRAME_ID.fullmatch(value):
            rows = self.lake.read(table, columns, filter=equals(key, value)).to_pylist()
            if rows:
                return rows[0]
        raise no_such(table.removesuffix("s"))

    def frame_jpeg(self, frame_id: str) -> bytes:
        """The stored JPEG of a frame; of a still without one, the source's own bytes. Problem 404 or 415; MediaError."""
        row = self.frame_row(frame_id, ["jpeg", "asset_id", "frame_index"])
        if row["jpeg"] is not None:
            return row["jpeg"]
        source, media_type = self.asset_source(row["asset_id"])
        if media_type != "image":
            raise Problem(404, "", "This frame's picture was not stored: process the lake with jpeg.store=true.")
        try:
            data = source.read(self.settings.limits.body_bytes)
        except MediaError as e:
            raise without_path(e, source) from e
        mime_of(data)
        return data

    def asset_source(self, asset_id: str) -> tuple[Any, str | None]:
        """Where a settled asset's bytes lie (MediaSource), and its media type. Problem 404.

        What is pending or in quarantine was never seen to be media: it may be any file that a link or a name led to.
        """
        from pipelines.search.run import ASSET_COLUMNS
        from pipelines.sources import RowReader, media_source

        row = self.row("assets", "asset_id", asset_id, [*ASSET_COLUMNS, "etag"])
        own = equals("asset_id", asset_id)
        if not (self.lake.count("ledger", own) or self.lake.count("quarantine", f"{own} AND salvaged_frames > 0")):
            raise Problem(404, "", "This asset was not processed, or could not be: only media that was is served.")
        return media_source(row, RowReader()), row["media_type"]

    async def image_bytes(self, image: bytes | None, frame_id: str | None) -> bytes:
        """The upload, or the stored picture of a frame."""
        if image is not None:
            return image
        return await asyncio.to_thread(self.frame_jpeg, frame_id or "")

    async def query_vector(self, column: Column, body: Any) -> np.ndarray:
        """Unit vector of a text, an image, a box of either, or a frame's stored vector."""
        from pipelines.lake.query import frame_vector

        model = self.embedding(column)
        if body.text is not None:
            return (await model.embed_texts.remote([body.text]))[0]
        if body.frame_id is not None and body.box is None:
            if not _FRAME_ID.fullmatch(body.frame_id):
                raise no_such("frame")
            try:
                return await asyncio.to_thread(frame_vector, self.lake, column.name, body.frame_id)
            except UsageError:  # whose sentence is for the server's own user: it names the lake
                raise Problem(404, "", "There is no such frame, or it has no vector of this model.") from None
        image = await self.image_bytes(body.image, body.frame_id)
        boxes = None if body.box is None else [body.box]
        return (await model.embed_images.remote([image], boxes))[0]


def without_path(error: BaseException, source: Any) -> BaseException:
    """The same error, its message with the file's name in place of where it lies on the server."""
    if not isinstance(error, MediaError):
        return error
    name = PurePosixPath(source.uri).name
    text = str(error)
    for place in filter(None, (source.uri, source.path)):
        text = text.replace(place, name)
    return MediaError(error.kind, text)


def mime_of(head: bytes) -> str:
    """The type of media by its first bytes. Problem 415 for bytes that are none, whatever they were when they were ingested."""
    kind = sniff(head[:SNIFFED])
    if kind not in MIME:
        raise Problem(415, "", "The file is no image or video any more: ingest its folder again.")
    return MIME[kind]


def no_such(thing: str) -> Problem:
    """The answer to an id of nothing."""
    return Problem(404, "", f"There is no such {thing} in the lake.")
