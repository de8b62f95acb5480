"""Ops on frames at work in a chain: working tables in, working tables with the ops' columns out, in order."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.process.frames import DROPPED_BY, WHY_DROPPED, drop_views, is_frame, put_column, view_pixels
from pipelines.process.local import Blame, note
from pipelines.process.measure import StageStats
from pipelines.process.ops import PlannedOp
from vfm_ops.media.view import View
from vfm_ops.op import Pictures, Result, joined

Batch = tuple[Pictures, Mapping[str, Sequence[Any]]]


def views_of(planned: Iterable[PlannedOp]) -> dict[str, View]:
    """What the decoder has to prepare for each op, by the op's title."""
    return {one.title: one.op.needs for one in planned if not one.op.on_videos and one.op.needs is not None}


def rows_column(title: str) -> str:
    """Working column of the rows that an op has found, for its table."""
    return f"rows:{title}"


class OpStage:
    """One op: adds its columns to frames that no filter before it dropped, and drops the pixels that it has seen.

    A frame that it can't do has the reason in `error` (JSON {column: sentence}); one that it drops has it in WHY_DROPPED.
    """

    def __init__(self, planned: PlannedOp) -> None:
        self.planned, self.op = planned, planned.op
        self.blame: Blame | None = None  # what the rows of now have cost workers before

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One table."""
        return next(iter(self.stream([rows], StageStats.of(self.planned))))

    def stream(self, tables: Iterable[pa.Table], stats: StageStats) -> Iterator[pa.Table]:
        """Tables in, tables out, in order; several batches may be under way at once. stats: where they are counted."""
        if self.blame is not None:
            yield from (self._carefully(rows, stats) for rows in tables)
            return
        waiting: deque[tuple[pa.Table, np.ndarray]] = deque()

        def batches() -> Iterator[Batch]:
            for rows in tables:
                chosen = _chosen(rows)
                waiting.append((rows, chosen))
                if chosen.any():
                    yield self._inputs(rows if chosen.all() else rows.filter(pa.array(chosen)))

        for result in self.op.apply_batches(batches()):
            stats.count(result)
            while not waiting[0][1].any():
                yield self._add(*waiting.popleft(), None)
            yield self._add(*waiting.popleft(), result)
        while waiting:
            yield self._add(*waiting.popleft(), None)

    def _carefully(self, rows: pa.Table, stats: StageStats) -> pa.Table:
        """One table, in which rows are seen alone that may have ended a worker, and those that did have that for an error."""
        assert self.blame
        chosen, title = _chosen(rows), self.planned.title
        ids = rows["frame_id"].to_pylist()
        lost = self.blame.lost.get(title, {})
        apart = {*self.blame.alone.get(title, ()), *lost}
        results = []
        for row_id, group in groupby(np.flatnonzero(chosen).tolist(), lambda i: ids[i] if ids[i] in apart else None):
            if row_id in lost:
                results.append(self.op.without_values([lost[row_id]]))
            else:
                results.append(next(iter(self.op.apply_batches([self._inputs(rows.take(list(group)))]))))
            stats.count(results[-1])
        return self._add(rows, chosen, joined(results, self.op.adds) if results else None)

    def _inputs(self, rows: pa.Table) -> Batch:
        note(self.planned.title, rows["frame_id"])
        needs = self.op.needs
        pictures: Pictures = [] if needs is None else view_pixels(rows, self.planned.title, needs)
        return pictures, {name: rows[name].to_pylist() for name in self.op.columns}

    def _add(self, rows: pa.Table, chosen: np.ndarray, result: Result | None) -> pa.Table:
        rows = drop_views(rows, self.planned.title)
        place = np.full(rows.num_rows, -1)
        place[chosen] = np.arange(int(chosen.sum()))
        take = None if chosen.all() else pa.array(place, mask=place < 0)
        for field, values in zip(self.planned.fields, self._values(result)):
            column = (
                pa.nulls(rows.num_rows, field.type) if values is None else values if take is None else values.take(take)
            )
            rows = put_column(rows, field, column.cast(field.type) if column.type != field.type else column)
        if result is None:
            return rows
        if self.op.table is not None:
            kind = pa.list_(pa.struct(list(self.op.table.columns.items())))
            found = pa.array(result.rows, kind)
            rows = put_column(
                rows, pa.field(rows_column(self.planned.title), kind), found if take is None else found.take(take)
            )
        rows = self._with_errors(rows, chosen, result)
        return self._with_drops(rows, place, result) if any(result.dropped) else rows

    def _values(self, result: Result | None) -> list[pa.Array | None]:
        if result is None:
            return [None] * len(self.planned.fields)
        if self.op.table is not None:
            return [pa.array([None if r is None else len(r) for r in result.rows or ()], pa.int32())]
        return list(result.columns.values())

    def _with_errors(self, rows: pa.Table, chosen: np.ndarray, result: Result) -> pa.Table:
        """Null is "not yet": a frame that stays without a value says why."""
        lacking = {f.name: np.flatnonzero(rows[f.name].is_null().to_numpy() & chosen) for f in self.planned.fields}
        if not any(len(places) for places in lacking.values()) and not any(result.errors):
            return rows
        told: list[str | None] = [None] * rows.num_rows
        for i, error in zip(np.flatnonzero(chosen), result.errors):
            told[i] = error
        errors = [json.loads(e) if e else {} for e in rows["error"].to_pylist()]
        for name, places in lacking.items():
            for i in places:
                errors[i][name] = told[i] or f"{self.planned.says} gave no value"
        column = pa.array([json.dumps(e) if e else None for e in errors], pa.string())
        return put_column(rows, "error", column)

    def _with_drops(self, rows: pa.Table, place: np.ndarray, result: Result) -> pa.Table:
        reasons = [result.dropped[p] if p >= 0 else None for p in place]
        why = pc.coalesce(rows[WHY_DROPPED], pa.array(reasons, pa.string()))
        title = pa.array([self.planned.title if r else None for r in reasons], pa.string())
        rows = put_column(rows, DROPPED_BY, pc.coalesce(rows[DROPPED_BY], title))
        return put_column(rows, WHY_DROPPED, why)


def _chosen(rows: pa.Table) -> np.ndarray:
    """Frames that are still in, bool (N,)."""
    if rows["outcome"].null_count == rows.num_rows == rows[WHY_DROPPED].null_count:
        return np.ones(rows.num_rows, bool)
    return pc.and_(is_frame(rows), rows[WHY_DROPPED].is_null()).to_numpy()
