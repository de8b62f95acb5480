"""The write op: working tables in, Lance fragments on disk, and one small row for the driver to commit.

A unit that failed gives such a row, too: what went wrong reaches the driver as data, and a unit of which nothing comes at all
is one whose worker died.
"""

from __future__ import annotations

import json
import socket
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.schema import DROPPED, table_schema
from pipelines.process.frames import DROPPED_BY, WHY_DROPPED, is_frame
from pipelines.process.ops import PlannedOp, decided_by
from pipelines.process.stages import rows_column
from vfm_ops.errors import MediaError, VfmError

FLUSH_BYTES = 12 << 20  # what is left to write when the last frame is embedded keeps nobody busy but the writer

RESULT = pa.schema(
    [
        ("fragments", pa.string()),  # JSON {table: [fragment]}
        ("rows", pa.string()),  # JSON {table: {asset_id: rows written}}
        ("dropped", pa.string()),  # JSON {asset_id: {reason: frames that a filter dropped}}
        ("failed", pa.int64()),  # frames that lack a value, since an op failed on them
        ("outcomes", pa.list_(pa.string())),
        ("stats", pa.string()),  # JSON {stage: seconds}
        ("interrupted", pa.list_(pa.string())),  # assets that a store failed on: they stay pending
        ("error", pa.string()),  # JSON of a UnitError; null where the unit got through
    ]
)
WORKER_DIED = "worker_died"  # kind of an error
INTERRUPTED = "store"  # stage of an outcome that is no outcome: the asset's store failed while it was read


@dataclass(frozen=True)
class UnitError:
    """An exception that a unit ended with, where the worker lived on.

    exit_code: of an error that is the run's (a store, a model, the recipe); None of one that an item may have caused.
    """

    message: str
    kind: str
    exit_code: int | None
    traceback: str
    asset_ids: list[str]

    @classmethod
    def of(cls, error: Exception, asset_ids: list[str]) -> UnitError:
        """From what was raised. Systems' errors (a full disk, a lost mount) are the run's like our own."""
        message = str(error).split("\n")[0] or type(error).__name__
        exit_code = None
        if isinstance(error, VfmError) and not isinstance(error, MediaError):
            exit_code = error.exit_code
        elif isinstance(error, OSError):
            message, exit_code = f"{type(error).__name__} on {socket.gethostname()}: {message}", VfmError.exit_code
        return cls(message, type(error).__name__, exit_code, "".join(traceback.format_exception(error)), asset_ids)


def error_row(error: UnitError) -> pa.Table:
    """The RESULT row of a unit that failed: nothing to commit."""
    nothing = {"fragments": "{}", "rows": "{}", "dropped": "{}", "failed": 0, "outcomes": [], "stats": "{}"}
    return pa.Table.from_pylist([{**nothing, "interrupted": [], "error": json.dumps(asdict(error))}], RESULT)


class WriteRows:
    """Op: the last of a chain. Writes fragments in a thread of its own while the next frames are embedded.

    Nothing it writes is visible before the driver commits it; fragments of a task that dies are never referenced.
    """

    def __init__(self, lake: Lake, planned: list[PlannedOp]) -> None:
        self.lake = lake
        self.tables = [one for one in planned if one.count is not None]
        self.decided_by = decided_by(planned)
        own = SCHEMAS["frames"]
        fields = [f for one in planned for f in one.fields]
        replaced = {f.name: f for f in fields}
        # Columns that belong to ops of which none is in the recipe are left out: null in the lake.
        self.schema = pa.schema([*(f for f in own if f.name not in replaced), *fields])
        self.no_drops = pa.schema([*self.schema, *DROPPED]).empty_table()  # made once: it is some forty arrays

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields one RESULT row when the input ends."""
        closed: list[str] = []
        dropped: dict[str, Counter[str]] = {}
        rows: dict[str, Counter[str]] = {}
        fragments: dict[str, list[str]] = {}
        waiting: list[pa.Table] = []
        futures: list[Future[list[str]]] = []
        found: dict[str, list[pa.Table]] = {}
        gone: list[pa.Table] = []
        failed = held = 0
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            for table in tables:
                closed += table["outcome"].drop_null().to_pylist()
                frames, drops = self._split(table)
                for one in self.tables:
                    if (own := op_rows(one, frames)).num_rows:
                        found.setdefault(one.op.table.name, []).append(own)  # type: ignore[union-attr]
                if drops.num_rows:
                    gone.append(drops)
                    for asset, reason in zip(drops["asset_id"].to_pylist(), drops["reason"].to_pylist()):
                        dropped.setdefault(asset, Counter())[reason] += 1
                frames = frames.select(self.schema.names)
                if frames.num_rows:
                    failed += frames.num_rows - frames["error"].null_count
                    rows.setdefault("frames", Counter()).update(frames["asset_id"].to_pylist())
                    waiting.append(frames)
                    held += frames.nbytes
                if held >= FLUSH_BYTES:
                    if futures:  # never more than one flush behind
                        futures[-1].result()
                    futures.append(pool.submit(self._write, "frames", waiting))
                    waiting, held = [], 0
            futures.append(pool.submit(self._write, "frames", waiting))
            fragments["frames"] = [f for future in futures for f in future.result()]
        for name, parts in [*found.items(), ("dropped", gone)]:
            fragments[name] = self._write(name, parts)
            rows[name] = Counter(a for part in parts for a in part["asset_id"].to_pylist())
        outcomes = {text: json.loads(text) for text in closed}
        interrupted = [o["asset_id"] for o in outcomes.values() if o["stage"] == INTERRUPTED]
        outcomes = {text: o for text, o in outcomes.items() if o["stage"] != INTERRUPTED}
        fragments["shots"] = self._write("shots", [shot_rows(o) for o in outcomes.values() if o["shots"]])
        for outcome in outcomes.values():
            if outcome["shots"]:
                rows.setdefault("shots", Counter())[outcome["asset_id"]] = len(outcome["shots"])
            for name, written in outcome["written"].items():
                fragments.setdefault(name, []).extend(written)
                rows.setdefault(name, Counter())[outcome["asset_id"]] = outcome["rows"]
        yield _result_row(fragments, rows, dropped, failed, list(outcomes), interrupted)

    def _split(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The frame rows of a working table, and those that a filter dropped, as rows of `dropped`."""
        framed = table["outcome"].null_count
        if framed in (0, table.num_rows):
            frames = table.slice(0, framed)
        else:
            frames = table.filter(is_frame(table))
        if frames[WHY_DROPPED].null_count == frames.num_rows:  # then no JPEG need be copied
            return frames, self.no_drops
        gone = frames.filter(frames[WHY_DROPPED].is_valid())
        by = gone[DROPPED_BY].to_pylist()
        keys = pa.array([self.decided_by[title] for title in by], pa.string())
        rows = gone.select(self.schema.names).append_column(DROPPED[0], gone[WHY_DROPPED])
        rows = rows.append_column(DROPPED[1], gone[DROPPED_BY]).append_column(DROPPED[2], keys)
        return frames.filter(frames[WHY_DROPPED].is_null()), rows

    def _write(self, table: str, parts: list[pa.Table]) -> list[str]:
        parts = [p for p in parts if p.num_rows]
        return self.lake.write_fragments(table, pa.concat_tables(parts)) if parts else []


def op_rows(one: PlannedOp, frames: pa.Table) -> pa.Table:
    """Rows of an op's table from frame rows that carry what it found. frames: with frame_id, asset_id, run_key, frame_index."""
    table = one.op.table
    assert table is not None
    schema = table_schema(table, "frame")
    if (column := rows_column(one.title)) not in frames.schema.names:
        return schema.empty_table()
    prefix = table.prefix if one.title == one.op.name and table.prefix else one.title
    rows = []
    for frame in frames.select(["frame_id", "asset_id", "run_key", "frame_index", column]).to_pylist():
        for number, found in enumerate(frame.pop(column) or []):
            rows.append({**frame, **found, table.id: f"{frame['frame_id']}:{prefix}{number}", "op": one.title})
    return pa.Table.from_pylist(rows, schema)


def _result_row(
    fragments: dict[str, list[str]],
    rows: dict[str, Counter[str]],
    dropped: dict[str, Counter[str]],
    failed: int,
    outcomes: list[str],
    interrupted: list[str],
) -> pa.Table:
    """The RESULT row of a unit that got through; its chain fills in `stats`."""
    row = {
        "fragments": json.dumps({t: f for t, f in fragments.items() if f}),
        "rows": json.dumps(rows),
        "dropped": json.dumps(dropped),
        "failed": failed,
        "outcomes": outcomes,
        "stats": "{}",
        "interrupted": interrupted,
        "error": None,
    }
    return pa.Table.from_pylist([row], RESULT)


def shot_rows(outcome: dict[str, Any]) -> pa.Table:
    """Rows of `shots` from an asset's outcome."""
    owner = {"asset_id": outcome["asset_id"], "run_key": outcome["run_key"]}
    return pa.Table.from_pylist([{**shot, **owner} for shot in outcome["shots"]], SCHEMAS["shots"])
