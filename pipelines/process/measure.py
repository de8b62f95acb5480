"""What the stages of a worker did with one unit: the time of each, and the rows.

Measured once, in the worker, by the batch. From here it goes to the run's summary and to the metrics: with the RESULT row of
the unit, and on Ray also from where it was measured, every few seconds.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.process.frames import STATS
from pipelines.process.local import note
from pipelines.process.metrics import (
    DECODED_ASSETS,
    DECODED_BYTES,
    OP_DROPPED,
    OP_FAILED,
    OP_ROWS,
    OP_SECONDS,
    RunMetrics,
)
from vfm_ops.models.device import resolve_device

if TYPE_CHECKING:
    from pipelines.process.ops import PlannedOp
    from vfm_ops.op import Result

DECODE, WRITE = "decode", "write"
TELL_EVERY_S = 5.0  # Ray's own metrics come every ten


@dataclass
class StageStats:
    """What one stage did. op: what the recipe calls it. name: the kind of op, as the summary has it.

    seconds: its own, without those of the stage that it waited for. rows: frames; failed: those without a value. assets, bytes:
    that were decoded, and how many bytes they have, encoded.
    """

    op: str
    name: str
    device: str = ""
    runtime: str = ""
    seconds: float = 0.0
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    assets: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, planned: PlannedOp) -> StageStats:
        """Of an op, which has done nothing yet."""
        op = planned.op
        runtime = op.runtime if isinstance(op.runtime, str) else ""  # an op of a user's may have something else there
        return cls(planned.title, op.name, resolve_device(op.device), runtime)

    def count(self, result: Result) -> None:
        """One batch."""
        self.rows += len(result.errors)
        if any(result.errors) or any(column.null_count for column in result.columns.values()):
            failed = np.array([error is not None for error in result.errors], bool)
            for column in result.columns.values():
                failed |= column.is_null().to_numpy(zero_copy_only=False)
            self.failed += int(failed.sum())
        if any(result.dropped):
            self.dropped += sum(reason is not None for reason in result.dropped)

    def since(self, before: StageStats) -> StageStats:
        """What it did since it stood as before."""
        return replace(self, **{name: max(0, getattr(self, name) - getattr(before, name)) for name in _COUNTED})


_COUNTED = ("seconds", "rows", "failed", "dropped", "assets", "bytes")


class Measure:
    """One unit on its way through stages that pull from each other. stages: in their order, as they are before it.

    Waits nest: an op's contains that for the one before it. What is left to each is its own, and WRITE has what is left of all.
    """

    def __init__(self, stages: Sequence[StageStats], metrics: RunMetrics) -> None:
        self._stages = {stage.op: replace(stage) for stage in stages}
        self._waits = dict.fromkeys(self._stages, 0.0)
        self._metrics = metrics
        self._told = {op: replace(stage) for op, stage in self._stages.items()}
        self._started = self._told_at = time.monotonic()

    def __getitem__(self, op: str) -> StageStats:
        """The stage of that name, to count in."""
        return self._stages[op]

    def timed(self, op: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Adds up how long the next stage waits for this one."""
        iterator = iter(tables)
        while True:
            note(None)
            t = time.monotonic()
            rows = next(iterator, None)
            self._waits[op] += time.monotonic() - t
            if rows is None:
                return
            yield rows

    def stages(self) -> list[StageStats]:
        """What each did so far."""
        inner = 0.0
        for op, stage in self._stages.items():
            waited = time.monotonic() - self._started if op == WRITE else self._waits[op]
            stage.seconds = max(0.0, waited - inner)
            inner = max(inner, waited)
        return list(self._stages.values())

    def tell(self, last: bool = False) -> None:
        """Tells the metrics of this process what is new, every few seconds and at the end (last)."""
        now = time.monotonic()
        if not last and now - self._told_at < TELL_EVERY_S:
            return
        stages = self.stages()
        add_stages(self._metrics.add, (stage.since(self._told[stage.op]) for stage in stages))
        self._told, self._told_at = {stage.op: replace(stage) for stage in stages}, now


def add_stages(add: Callable[..., None], stages: Iterable[StageStats]) -> None:
    """What stages did, to a run's metrics. add: `RunMetrics.add`, or `add_to_file`."""
    for stage in stages:
        labels = {"op": stage.op, "device": stage.device, "runtime": stage.runtime}
        add(OP_SECONDS, stage.seconds, **labels)
        add(OP_ROWS, stage.rows, **labels)
        add(OP_FAILED, stage.failed, **labels)
        add(OP_DROPPED, stage.dropped, **labels)
        add(DECODED_ASSETS, stage.assets)
        add(DECODED_BYTES, stage.bytes)


def to_json(stages: Iterable[StageStats]) -> str:
    """Stages, to be sent."""
    return json.dumps([asdict(stage) for stage in stages])


def from_json(text: str) -> list[StageStats]:
    """The stages that were sent."""
    return [StageStats(**stage) for stage in json.loads(text)]


def seconds_by_name(stages: Iterable[StageStats]) -> Counter[str]:
    """Seconds by the kind of op."""
    seconds: Counter[str] = Counter()
    for stage in stages:
        seconds[stage.name] += stage.seconds  # type: ignore[assignment]
    return seconds


def put_stats(rows: pa.Table, stages: Iterable[StageStats]) -> pa.Table:
    """Working rows whose last one brings to the worker that writes what these stages did, and those before them."""
    column = rows[STATS].to_pylist()
    column[-1] = to_json([*(from_json(column[-1]) if column[-1] else ()), *stages])
    return rows.set_column(rows.schema.get_field_index(STATS), STATS, pa.array(column, pa.string()))


def take_stats(tables: Iterable[pa.Table], into: list[StageStats]) -> Iterator[pa.Table]:
    """Working tables as they are; what `put_stats` put in them goes into a list."""
    for rows in tables:
        for text in rows[STATS].drop_null().to_pylist():
            into += from_json(text)
        yield rows
