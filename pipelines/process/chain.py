"""A chain of ops in one actor: each is built once, where it runs, and tables stream through them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake, Work
from pipelines.process.decode import DecodeAssets, known_assets
from pipelines.process.local import Blame, note
from pipelines.process.ops import plan_ops
from pipelines.process.recipe import Recipe
from pipelines.process.stages import OpStage, views_of
from pipelines.process.store import Doubt, Verdict
from pipelines.process.units import read_unit
from pipelines.process.videos import RunOnVideos
from pipelines.process.write import INTERRUPTED, UnitError, WriteRows, error_row
from vfm_ops.errors import VfmError
from vfm_ops.scheduling import use_batch_scheduling

DECODE, WRITE = "decode", "write"


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
            self.source = RunOnVideos(next(one for one in planned if one.title == self.work.op), recipe, lake)
            self.stages: list[OpStage] = []
        else:
            self.source = DecodeAssets(recipe, views_of(frame_ops), threads) if part.decode else None
            self.stages = [OpStage(one) for one in frame_ops if part.ops is None or one.title in part.ops]
        self.write = WriteRows(lake, [] if self.work.op is not None else frame_ops) if part.write else None
        self.doubt = Doubt(lake)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """block: a unit where this chain decodes, else working tables. Yields working tables, or one RESULT row.

        What goes wrong is a RESULT row as well; such a row from the chain before passes through.
        """
        if "error" in block.schema.names and "fragments" in block.schema.names:
            yield block
            return
        assets: list[str] = []
        try:
            if self.failure:
                raise _of_the_run(self.failure, "start")
            yield from self._run(block, assets)
        except Exception as e:
            yield error_row(UnitError.of(e, assets))

    def _run(self, block: pa.Table, assets: list[str]) -> Iterator[pa.Table]:
        started = time.monotonic()
        first = self.work.op or DECODE
        waits = dict.fromkeys((first, *(stage.planned.op.name for stage in self.stages), WRITE), 0.0)
        block, blame = Blame.of(block)
        stream: Iterable[pa.Table] = [block]
        for stage in self.stages:
            stage.blame = blame
        if self.source:
            try:
                unit = read_unit(self.lake, self.version, block)
            except Exception as e:  # before its assets are known, none of them is to blame
                raise _of_the_run(e, "read its assets") from e
            assets += unit["asset_id"].to_pylist()
            stream = _timed(waits, first, self._from_source(unit, assets))
        else:
            assets += pc.unique(block["asset_id"]).to_pylist()
        for stage in self.stages:
            stream = _timed(waits, stage.planned.op.name, stage.stream(stream))
        stream = map(self._doubted, stream)
        if not self.write:
            yield from stream
            return
        for result in self.write.stream(stream):
            stats = {
                "seconds": _exclusive(waits, time.monotonic() - started),
                "actor": self.actor,
                "cpu": _cpu_seconds(),
            }
            yield result.set_column(result.schema.get_field_index("stats"), "stats", pa.array([json.dumps(stats)]))

    def _from_source(self, unit: pa.Table, assets: list[str]) -> Iterator[pa.Table]:
        if isinstance(self.source, DecodeAssets):
            known = known_assets(self.lake, self.recipe, assets) if self.work.replaces and assets else {}
            return self.source(unit, known)
        assert self.source is not None
        return self.source(unit)

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


def _timed(waits: dict[str, float], name: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Adds up how long the next op waits for this one."""
    iterator = iter(tables)
    while True:
        note(None)
        t = time.monotonic()
        rows = next(iterator, None)
        waits[name] += time.monotonic() - t
        if rows is None:
            return
        yield rows


def _exclusive(waits: dict[str, float], total: float) -> dict[str, float]:
    """Waits nest (embed waits for decode, the last op is the rest of the total); what is left to each is its own."""
    own, inner = {}, 0.0
    *names, last = waits
    for name in names:
        own[name] = max(0.0, waits[name] - inner)
        inner = max(inner, waits[name])
    return {**own, last: max(0.0, total - inner)}


def _cpu_seconds() -> float:
    """CPU time of this actor and its decoder children, in seconds."""
    me = psutil.Process(os.getpid())
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))
