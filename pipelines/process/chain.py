"""A chain of ops in one actor: each is built once, where it runs, and tables stream through them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake, Work
from pipelines.process.decode import DecodeAssets, known_assets
from pipelines.process.local import Blame, note
from pipelines.process.measure import DECODE, WRITE, Measure, StageStats, put_stats, take_stats
from pipelines.process.metrics import WORKER_DEATHS, RunMetrics, restarted
from pipelines.process.ops import plan_ops
from pipelines.process.recipe import Recipe
from pipelines.process.stages import OpStage, views_of
from pipelines.process.store import Doubt, Verdict
from pipelines.process.units import read_unit
from pipelines.process.videos import RunOnVideos
from pipelines.process.write import INTERRUPTED, RESULT, UnitError, WriteRows, error_row
from vfm_ops.errors import VfmError
from vfm_ops.scheduling import use_batch_scheduling


@dataclass(frozen=True)
class Part:
    """What of the way an actor does. ops: titles of the ops on frames, in order; None: all."""

    decode: bool = True
    ops: tuple[str, ...] | None = None
    write: bool = True


class Chain:
    """Actor: builds what it is to do (where the work is an op on videos, that in place of decoding and ops) and runs a block
    through it, streaming.

    A block that is written gives exactly one row, so that a task is done or not done; there is no half.
    """

    def __init__(
        self,
        part: Part,
        lake: Lake,
        version: int,
        recipe: Recipe,
        threads: int,
        work: Work,
    ) -> None:
        self.lake, self.version, self.part, self.work = lake, version, part, work
        self.actor = f"{socket.gethostname()}:{os.getpid()}"
        self.source: DecodeAssets | RunOnVideos | None = None
        self.failure: Exception | None = None
        self.metrics = RunMetrics(lake.root)
        self.deaths = int(restarted())  # of the worker whose place this one took, until somebody was told
        self.metrics.add(WORKER_DEATHS, self.deaths)
        try:
            self._build(recipe, threads)
        except Exception as e:
            # Raised here, it would be one more dead actor to Ray, which tells nobody why; so each unit tells.
            self.failure = e

    def _build(self, recipe: Recipe, threads: int) -> None:
        # Arrow's own allocator gives freed memory back to the system, which the next frames then have to ask for again.
        pa.set_memory_pool(pa.system_memory_pool())
        use_batch_scheduling()  # before the models' threads and the decoders are started
        part, lake = self.part, self.lake
        self.recipe = recipe
        # Where every op of the recipe has its columns already.
        planned = plan_ops(recipe, lake.schema("frames"), threads)
        frame_ops = [one for one in planned if not one.op.on_videos]
        if self.work.op is not None:
            on_videos = next(one for one in planned if one.title == self.work.op)
            self.source = RunOnVideos(on_videos, recipe, lake)
            self.stages: list[OpStage] = []
            self.measured = [StageStats.of(on_videos)]
        else:
            self.source = None
            if part.decode:
                self.source = DecodeAssets(recipe, views_of(frame_ops), threads)
                self.source.sandbox.start()  # they import while the ops load their models, which they do when first asked
            self.stages = [OpStage(one) for one in frame_ops if part.ops is None or one.title in part.ops]
            self.measured = [StageStats(DECODE, DECODE, "cpu")] if self.source else []
        self.measured += [StageStats.of(stage.planned) for stage in self.stages]
        self.measured += [StageStats(WRITE, WRITE, "cpu")] if part.write else []
        self.write = WriteRows(lake, [] if self.work.op is not None else frame_ops) if part.write else None
        self.doubt = Doubt(lake)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """block: a unit where this chain decodes, else working tables. Yields working tables, or one RESULT row.

        What goes wrong is a RESULT row as well; such a row from the chain before passes through.
        """
        if "fragments" in block.schema.names:
            # Ray joins all that the chain before gave of its unit. What it made until it failed goes with it.
            yield block.filter(block["fragments"].is_valid()).select(RESULT.names).cast(RESULT)
            return
        assets: list[str] = []
        try:
            if self.failure:
                raise _of_the_run(self.failure, "start")
            with self.metrics.unit_in_flight() if self.part.decode else nullcontext():
                yield from self._run(block, assets)
        except Exception as e:
            yield error_row(UnitError.of(e, assets))

    def _run(self, block: pa.Table, assets: list[str]) -> Iterator[pa.Table]:
        measure = Measure(self.measured, self.metrics)
        block, blame = Blame.of(block)
        stream: Iterable[pa.Table] = [block]
        for stage in self.stages:
            stage.blame = blame
        before: list[StageStats] = []  # what workers before this one did
        if self.source:
            try:
                unit = read_unit(self.lake, self.version, block)
            except Exception as e:  # before its assets are known, none of them is to blame
                raise _of_the_run(e, "read its assets") from e
            assets += unit["asset_id"].to_pylist()
            first = self.work.op or DECODE
            stream = measure.timed(first, self._from_source(unit, assets, measure[first]))
        else:
            assets += pc.unique(block["asset_id"]).to_pylist()
            stream = take_stats(stream, before) if self.write else stream
        for stage in self.stages:
            title = stage.planned.title
            stream = measure.timed(title, stage.stream(stream, measure[title]))
        stream = _told(map(self._doubted, stream), measure)
        if not self.write:
            yield from _sent_on(stream, measure)
            return
        for result in self.write.stream(_counted(stream, measure[WRITE])):
            measure.tell(last=True)
            stats = {
                "stages": [asdict(stage) for stage in (*before, *measure.stages())],
                "actor": self.actor,
                "cpu": _cpu_seconds(),
                "deaths": self.deaths,
            }
            self.deaths = 0
            yield result.set_column(result.schema.get_field_index("stats"), "stats", pa.array([json.dumps(stats)]))

    def _from_source(self, unit: pa.Table, assets: list[str], stats: StageStats) -> Iterator[pa.Table]:
        if isinstance(self.source, RunOnVideos):
            yield from self.source(unit, stats)
            return
        assert self.source is not None
        known = known_assets(self.lake, self.recipe, assets) if self.work.replaces and assets else {}
        stats.assets, stats.bytes = unit.num_rows, pc.sum(unit["size"]).as_py() or 0
        yield from _counted(self.source(unit, known), stats)

    def _doubted(self, rows: pa.Table) -> pa.Table:
        """Working rows in which an asset that its store failed on is marked as such, not as a bad item."""
        note(None)
        doubtful = pc.fill_null(pc.match_substring(rows["outcome"], '"error_type": "unreadable"'), False)
        if not pc.any(doubtful).as_py():
            closed = rows["outcome"].drop_null()
            if len(closed) and '"stage": null' in (last := closed[-1].as_py()):
                self.doubt.note(last)
            return rows
        outcomes = rows["outcome"].to_pylist()
        for i in np.flatnonzero(doubtful.to_numpy()):
            outcome = json.loads(outcomes[i])
            if outcome["stage"] != INTERRUPTED and self.doubt.judge(outcome["source"]) is Verdict.STORE:
                outcomes[i] = json.dumps({**outcome, "stage": INTERRUPTED})
        column = pa.array(outcomes, pa.string())
        return rows.set_column(rows.schema.get_field_index("outcome"), "outcome", column)

    def close(self) -> None:
        """Ends the decoder processes."""
        if self.source:
            self.source.sandbox.close()


def _of_the_run(error: Exception, what: str) -> Exception:
    """What no item is to blame for, whatever was raised, such as a model that can't be built."""
    return (
        error
        if isinstance(error, VfmError)
        else VfmError(f"a worker could not {what}: {type(error).__name__}: {error}")
    )


def _counted(tables: Iterable[pa.Table], stats: StageStats) -> Iterator[pa.Table]:
    """Working tables as they are, and their frames counted."""
    for rows in tables:
        stats.rows += rows["outcome"].null_count
        yield rows


def _told(tables: Iterable[pa.Table], measure: Measure) -> Iterator[pa.Table]:
    """Working tables as they are; meanwhile, metrics hear of what is measured."""
    for rows in tables:
        measure.tell()
        yield rows


def _sent_on(tables: Iterable[pa.Table], measure: Measure) -> Iterator[pa.Table]:
    """Working tables for another worker; the last brings what was measured here."""
    held: pa.Table | None = None
    for rows in tables:
        if held is not None:
            yield held
        held = rows
    measure.tell(last=True)
    if held is not None:
        yield put_stats(held, measure.stages()) if held.num_rows else held


def _cpu_seconds() -> float:
    """CPU time of this actor and its decoder children, in seconds."""
    me = psutil.Process(os.getpid())
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))
