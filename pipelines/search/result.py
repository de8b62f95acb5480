"""What a search gives: its hits as a table, one by one, and as a notebook shows them, with their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake import Lake
from pipelines.lake.html import table_html, thumbnail_html
from pipelines.lake.sql import equals, one_of
from pipelines.search.columns import Column
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits

FRAME_COLUMNS = ["frame_id", "asset_id", "frame_index", "pts_s", "width", "height"]
ASSET_COLUMNS = ["asset_id", "uri", "member", "media_type", "container", "offset", "length"]
SHOWN_HITS = 24  # in a notebook: a page of pictures, and no megabytes of them


@dataclass(frozen=True)
class Hit:
    """A frame that was found. score: cosine. pts_s: seconds from the start of its video. uri, member: where it is from."""

    frame_id: str
    asset_id: str
    frame_index: int | None
    pts_s: float | None
    width: int | None
    height: int | None
    score: float
    uri: str | None
    member: str | None
    media_type: str | None

    @property
    def name(self) -> str:
        """Name of its file, or of the member of its archive."""
        return PurePath(self.member or self.uri or self.frame_id).name

    @property
    def time(self) -> str:
        """When in its video, as minutes:seconds; empty for a still."""
        if self.media_type == "image" or self.pts_s is None:
            return ""
        return f"{int(self.pts_s // 60)}:{self.pts_s % 60:06.3f}"


@dataclass(frozen=True)
class SearchResult:
    """The frames that were found, best first: `len(result)`, `result[0].score`, `for hit in result`.

    hits: the same as a table, with columns FRAME_COLUMNS, `score` (cosine, float32), uri, member, media_type. column: the
    embeddings that answered.
    """

    column: Column
    hits: pa.Table
    lake: Lake = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.hits.num_rows

    def __iter__(self) -> Iterator[Hit]:
        return (Hit(**row) for row in self.hits.to_pylist())

    def __getitem__(self, index: int) -> Hit:
        return list(self)[index]

    def pictures(self) -> list[np.ndarray]:
        """The picture of each hit, RGB uint8 (H, W, 3); grey where none is stored and its source is no still."""
        return hit_pictures(self.lake, self.hits)

    def __repr__(self) -> str:
        lines = [f"{hit.score:.4f}  {hit.time:>9}  {hit.name}" for hit in self]
        return "\n".join([f"{len(self)} frames nearest by {self.column.spec}", *lines])

    def _repr_html_(self) -> str:
        shown = self.hits.slice(0, SHOWN_HITS)
        rows = [
            (thumbnail_html(picture), Hit(**row).score, Hit(**row).name, Hit(**row).time, row["frame_id"])
            for row, picture in zip(shown.to_pylist(), hit_pictures(self.lake, shown))
        ]
        return table_html(
            f"{len(self)} frames nearest by {self.column.spec}", ["picture", "score", "from", "time", "frame_id"], rows
        )


def hit_pictures(lake: Lake, hits: pa.Table) -> list[np.ndarray]:
    """Each hit as RGB uint8 (H, W, 3): its stored JPEG; else the source, when it is a still; else a grey card."""
    ids = hits["frame_id"].to_pylist()
    if not ids:
        return []
    rows = lake.read("frames", ["frame_id", "jpeg"], filter=one_of("frame_id", ids)).to_pylist()
    stored = {row["frame_id"]: row["jpeg"] for row in rows}
    reader = RowReader()
    return [_picture(lake, hit, stored.get(hit["frame_id"]), reader) for hit in hits.to_pylist()]


def _picture(lake: Lake, hit: dict[str, Any], jpeg: bytes | None, reader: RowReader) -> np.ndarray:
    try:
        if jpeg is None and hit["media_type"] == "image":
            row = lake.read("assets", [*ASSET_COLUMNS, "etag"], filter=equals("asset_id", hit["asset_id"])).to_pylist()[
                0
            ]
            jpeg = media_source(row, reader).read(Limits().max_image_bytes)
        if jpeg is not None:
            return decode_image(jpeg, Limits(), hit["frame_id"])
    except MediaError:
        return np.full((180, 240, 3), 128, np.uint8)  # the hit stands, though its picture is gone
    return np.full((180, 240, 3), 128, np.uint8)
