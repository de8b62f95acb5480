"""A lake as if what people said were what its models found: what exports, overlays and scores read, on `annotations`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.annotations import CurrentAnnotations
from pipelines.lake.sql import equals
from vfm_ops.arrow_types import MASK
from vfm_ops.errors import UsageError

UNNAMED = "object"  # the label of what was given none
# The tables that are stood in for: which annotations are their rows, and their schemas.
_STAND_INS = {
    "detections": (
        "box IS NOT NULL AND kind IN ('box', 'mask', 'track')",
        SCHEMAS["detections"].append(pa.field("mask", MASK)),
    ),
    "tracks": ("kind = 'track'", SCHEMAS["tracks"]),
}
_READ = [
    *("annotation_id", "asset_id", "asset_no", "frame_id", "frame_index", "pts_s", "object_id"),
    *("label", "box", "mask", "score"),
]


class AnnotatedLake(Lake):
    """An open lake, for reading: its `detections` are the boxes and masks of `annotations`, its `tracks` the tracks.

    It has the frames that were annotated, all of a video that has tracks; of a file that changed since, nothing. What is
    added later is not seen.

    Args:
        lake: an open lake, or a part of one.
        author: whose annotations; None takes everyone's.

    Attributes:
        left_out: frames with boxes or masks that are not stored: they are on no picture.

    Raises:
        UsageError: there is none.
    """

    def __init__(self, lake: Lake, author: str | None = None) -> None:
        super().__init__(lake.root)
        self._lake, self._own = lake, None if author is None else equals("author", author)
        self._said = CurrentAnnotations(lake, pinned=True)
        self._numbers = {r["asset_id"]: r["asset_no"] for r in _rows(lake, "assets", ["asset_id", "asset_no"])}
        self._frames: set[str] = set()
        self._assets: set[str] = set()
        self._tracked: set[str] = set()
        shown: set[str] = set()
        for row in _rows(self._said, "annotations", ["asset_id", "asset_no", "frame_id", "kind", "box"], self._own):
            if self._counts(row):
                self._assets.add(row["asset_id"])
                self._frames.add(row["frame_id"])
                self._tracked |= {row["asset_id"]} if row["kind"] == "track" else set()
                shown |= {row["frame_id"]} if row["box"] is not None and row["kind"] != "track" else set()
        if not self._assets:
            raise UsageError(f"{lake.root} has no annotations" + ("" if author is None else f" by {author}"))
        stored = {r["frame_id"] for r in _rows(self, "frames", ["frame_id"])}
        self._frames &= stored
        self.left_out = len(shown - stored)

    def schema(self, table: str) -> pa.Schema:
        """As `Lake.schema`."""
        return _STAND_INS[table][1] if table in _STAND_INS else self._lake.schema(table)

    def scan(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """As `Lake.scan`. A filter of a table that annotations stand in for is over asset_id, frame_id and frame_index."""
        if table in _STAND_INS:
            yield from self._objects(table, columns, filter)
        elif table in ("frames", "ledger"):
            yield from self._annotated(table, columns, filter, options)
        else:
            yield from self._lake.scan(table, columns, filter, **options)

    def count(self, table: str, filter: str | None = None) -> int:
        """As `Lake.count`."""
        if table not in (*_STAND_INS, "frames", "ledger"):
            return self._lake.count(table, filter)
        return sum(batch.num_rows for batch in self.scan(table, ["asset_id"], filter))

    def _counts(self, row: dict[str, Any]) -> bool:
        """Whether a row is of a file as it is now."""
        return row["asset_no"] in (None, self._numbers.get(row["asset_id"]))

    def _objects(self, table: str, columns: list[str] | None, filter: str | None) -> Iterator[pa.RecordBatch]:
        kinds, schema = _STAND_INS[table]
        where = " AND ".join(f"({part})" for part in (kinds, self._own, filter) if part)
        for batch in self._said.scan("annotations", _READ, where, batch_size=256):
            rows = [
                row
                | {"label": row["label"] or UNNAMED, "run_key": "", "visible": True}
                | {"detection_id": row["annotation_id"], "track_id": f"{row['asset_id']}:{row['object_id']}"}
                for row in batch.to_pylist()
                if self._counts(row) and (table == "tracks" or row["frame_id"] in self._frames)
            ]
            if rows:
                made = pa.RecordBatch.from_pylist(rows, schema)
                yield made if columns is None else made.select(columns)

    def _annotated(
        self, table: str, columns: list[str] | None, filter: str | None, options: dict[str, Any]
    ) -> Iterator[pa.RecordBatch]:
        """Rows of frames that were annotated, or of assets that were."""
        keys = ["asset_id", "frame_id"] if table == "frames" else ["asset_id"]
        wanted = None if columns is None else [*columns, *(k for k in keys if k not in columns)]
        for batch in self._lake.scan(table, wanted, filter, **options):
            assets = batch["asset_id"].to_pylist()
            frames = batch["frame_id"].to_pylist() if table == "frames" else [None] * len(assets)
            inside = [
                a in self._assets if f is None else f in self._frames or a in self._tracked
                for a, f in zip(assets, frames)
            ]
            kept = batch.filter(pa.array(inside, pa.bool_()))
            if kept.num_rows:
                yield kept if columns is None else kept.select(columns)


def _rows(lake: Any, table: str, columns: list[str], where: str | None = None) -> Iterator[dict[str, Any]]:
    known = [c for c in columns if c in lake.schema(table).names]
    for batch in lake.scan(table, known, where, batch_size=8192):
        yield from (dict.fromkeys(columns) | row for row in batch.to_pylist())
