"""The driver's side of exactly once: results of tasks in, commits out, every few seconds, ledger rows last."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipelines.lake import CHILD_TABLES, SCHEMAS, Lake, forget_replaced
from pipelines.lake.coverage import AssetSet, cover, uncover
from pipelines.lake.journal import clear_journals
from pipelines.lake.maintenance import RunningCompaction
from pipelines.lake.sql import one_of
from pipelines.process.measure import DECODE, StageStats, add_stages, seconds_by_name
from pipelines.process.metrics import (
    COMMIT_SECONDS,
    COMMITS,
    COMMITTED_ASSETS,
    COMMITTED_ROWS,
    QUARANTINED,
    WORKER_DEATHS,
    current,
)

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 3.0
LEAST_BETWEEN = 20  # times what the last commit took: commits to a lake of many pictures take longer
# What is not said yet to be covered is looked at once more after a kill, and found to have its values.
COVER_EVERY_S = 30.0


@dataclass
class Progress:
    """How far a run is in what it does now.

    op: that it computes, None while it decodes. unit: what is counted. settled: how many are done. counts: of the whole run.
    seconds: by stage.
    """

    op: str | None
    unit: str
    settled: int
    counts: Counter[str]
    seconds: Counter[str]


class Committer:
    """Collects RESULT rows and commits them. The first one at once, so that a user sees rows early.

    An asset is settled when its closing row and all the frames that it counts have come, in whatever order. replacing: rows of
    an earlier recipe or attempt may have to go. covers: keys of the ops on frames that settled assets have passed, with their
    titles. op, table: of an op on videos, instead: its name in the recipe, and its table.
    """

    def __init__(
        self,
        lake: Lake,
        run_id: str,
        replacing: bool,
        cores: int = os.cpu_count() or 1,
        covers: dict[str, str] | None = None,
        op: str | None = None,
        table: str | None = None,
    ) -> None:
        self.lake, self.run_id, self.cores = lake, run_id, cores
        self.replacing, self.covers, self.op, self.table = replacing, covers or {}, op, table
        self.counts: Counter[str] = Counter()
        self.settled = 0
        self.grown = 0  # assets that had frames of another sampling
        self.seconds: Counter[str] = Counter()
        self.first_commit_at: float | None = None
        self._fragments: dict[str, list[str]] = {}
        self._rows: dict[str, Counter[str]] = {}
        self._dropped: dict[str, Counter[str]] = {}
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._committed_at = self._covered_at = self._took = 0.0
        self._compaction = RunningCompaction(lake)
        self._uncovered: list[int] = []  # asset numbers
        self._first_result_at: float | None = None
        self._last_result_at = 0.0
        self._cpu: dict[str, list[float]] = {}  # CPU seconds of each actor so far, as its results came
        self._steady_frames = 0

    def add(self, result: dict[str, Any]) -> None:
        """Takes one RESULT row; commits when the last commit is long enough ago."""
        for table, fragments in json.loads(result["fragments"]).items():
            self._fragments.setdefault(table, []).extend(fragments)
        rows = json.loads(result["rows"])
        for table, counted in rows.items():
            self._rows.setdefault(table, Counter()).update(counted)
        for asset_id, reasons in json.loads(result["dropped"]).items():
            self._dropped.setdefault(asset_id, Counter()).update(reasons)
        self.counts["failed"] += result["failed"]
        stats = json.loads(result["stats"])
        stages = [StageStats(**stage) for stage in stats["stages"]]
        add_stages(current().add_to_file, stages)
        current().add_to_file(WORKER_DEATHS, stats["deaths"])
        if stats["deaths"]:
            logger.warning("a worker died, and another took its place: what it was at work on is done again")
        self.seconds.update(seconds_by_name(stages))
        self._cpu.setdefault(stats["actor"], []).append(stats["cpu"])
        self._last_result_at = time.monotonic()
        if self._first_result_at is None:
            self._first_result_at = self._last_result_at
        else:
            self._steady_frames += sum(sum(rows.get(table, {}).values()) for table in ("frames", "dropped"))
        for outcome in map(json.loads, result["outcomes"]):
            self.add_outcome(outcome)
        if time.monotonic() - self._committed_at >= max(COMMIT_EVERY_S, LEAST_BETWEEN * self._took):
            self.flush()

    def add_outcome(self, outcome: dict[str, Any]) -> None:
        """Takes the closing row of one asset."""
        outcome.pop("written", None)  # it is in the result's fragments
        self._outcomes[outcome["asset_id"]] = outcome

    def again(self) -> Committer:
        """One for what this one has not settled, which goes on with its counts; what it held of that is forgotten."""
        other = Committer(self.lake, self.run_id, self.replacing, self.cores, self.covers, self.op, self.table)
        other.counts, other.seconds, other.first_commit_at = self.counts, self.seconds, self.first_commit_at
        other.settled, other.grown = self.settled, self.grown
        return other

    @property
    def unit(self) -> str:
        """What is settled."""
        return "assets" if self.op is None else "videos"

    @property
    def efficiency(self) -> float | None:
        """Share of the machine's CPU time that went into decoding and models, after the first result came."""
        if self._first_result_at is None or self._last_result_at - self._first_result_at < 1.0:
            return None
        busy = sum(max(seconds) - seconds[0] for seconds in self._cpu.values())
        return busy / (self.cores * (self._last_result_at - self._first_result_at))

    @property
    def steady_rate(self) -> float | None:
        """Frames a second between the first result and the last: start-up does not count."""
        if self._first_result_at is None or self._last_result_at <= self._first_result_at:
            return None
        return self._steady_frames / (self._last_result_at - self._first_result_at)

    def flush(self, last: bool = False) -> None:
        """Commits children first, then what became of their assets, then drops what they replace. last: of this stretch of
        work, so that all is said of it.
        """
        began, metrics = time.monotonic(), current()
        complete = [o for o in self._outcomes.values() if self._came(o["asset_id"]) >= o["frames"]]
        for table in sorted(self._fragments, key=_commit_order):
            fragments = self._fragments.pop(table)
            self.lake.commit(table, fragments)
            self._compaction.appended(table, len(fragments))
            metrics.add(COMMITS, table=table)
        if complete:
            self._settle(complete)
        self._committed_at = time.monotonic()
        self._took = self._committed_at - began
        metrics.add(COMMIT_SECONDS, self._took)
        metrics.publish()
        if self._uncovered and (last or self._committed_at - self._covered_at >= COVER_EVERY_S):
            cover(self.lake, self.covers, AssetSet(self._uncovered), self.run_id)
            self._uncovered, self._covered_at = [], self._committed_at
        if self.first_commit_at is None:
            self.first_commit_at = time.time()

    def _came(self, asset_id: str) -> int:
        return sum(self._rows[table][asset_id] for table in ("frames", "dropped") if table in self._rows)

    def _settle(self, complete: list[dict[str, Any]]) -> None:
        now, metrics = datetime.now(UTC), current()
        for o in complete:
            o["dropped"] = dict(Counter(o["dropped"]) + self._dropped.pop(o["asset_id"], Counter()))
        good = [o for o in complete if o["stage"] is None]
        bad = [o for o in complete if o["stage"] is not None]
        common = {"run_id": self.run_id, "finished_at": now}
        ledger = [self._ledger_row(o) | common for o in good]
        quarantine = [self._quarantine_row(o) | common for o in bad]
        self._mark_salvaged([r["asset_id"] for r in quarantine if r["salvaged_frames"]])
        assets = AssetSet([o["asset_no"] for o in complete if o["asset_no"] is not None])
        if self.replacing and self.table is None:
            uncover(self.lake, assets, self.run_id)
        op = self.op
        for table, rows in (("quarantine", quarantine), ("ledger", ledger)):
            if rows:
                settled = pa.Table.from_pylist(rows, SCHEMAS[table])
                self.lake.append(table, settled)
                self._compaction.appended(table)
                metrics.add(COMMITS, table=table)
                if self.replacing:
                    forget_replaced(self.lake, settled, op, self.table)
        # Of assets that had frames before, an op may lack the values of those: what is missing is looked for.
        self._uncovered += [o["asset_no"] for o in complete if o["asset_no"] is not None and not o["known"]]
        self.grown += sum(o["known"] for o in complete)
        clear_journals(self.lake, [o["journal"] for o in complete if o["journal"]])
        self.settled += len(complete)
        self.counts["assets" if op is None else "videos"] += len(complete)
        self.counts["quarantined"] += len(bad)
        metrics.add(COMMITTED_ASSETS, len(good), op=op or DECODE)
        for (stage, kind), count in Counter((o["stage"], o["error_type"]) for o in bad).items():
            metrics.add(QUARANTINED, count, stage=stage, kind=kind)
        for table, count in self._rows_of(complete).items():
            self.counts[table] += count
            metrics.add(COMMITTED_ROWS, count, table=table)
        for o in complete:
            del self._outcomes[o["asset_id"]]

    def _rows_of(self, complete: list[dict[str, Any]]) -> Counter[str]:
        """How many rows came of settled assets, by table; they are not held any longer."""
        came: Counter[str] = Counter()
        for o in complete:
            for table, counted in self._rows.items():
                rows = counted.pop(o["asset_id"], 0)
                came[table] += rows if table != "dropped" else 0
            came["dropped"] += sum(o["dropped"].values())
        return came

    def _ledger_row(self, o: dict[str, Any]) -> dict[str, Any]:
        row = {
            name: o.get(name)
            for name in ("asset_id", "run_key", "recipe", "attempt", "etag", "probe", "op", "asset_no")
        }
        if o["op"] is not None:
            return {**row, "probe": None, "rows": o["rows"]}
        shots = self._rows["shots"][o["asset_id"]] if "shots" in self._rows else 0
        dropped = json.dumps(o["dropped"]) if o["dropped"] else None
        counts = {"shots": shots, "frames": self._came(o["asset_id"]), "dropped": dropped}
        return {**row, **counts, "wanted": o["wanted"]}

    def _quarantine_row(self, o: dict[str, Any]) -> dict[str, Any]:
        names = (
            "asset_id",
            "run_key",
            "uri",
            "stage",
            "error_type",
            "message",
            "traceback",
            "recipe",
            "attempt",
            "op",
            "asset_no",
        )
        frames = self._came(o["asset_id"]) if o["op"] is None else 0
        return {**{name: o[name] for name in names}, "salvaged_frames": frames}

    def _mark_salvaged(self, asset_ids: list[str]) -> None:
        if asset_ids:
            self.lake.update("frames", {"salvaged": "true"}, one_of("asset_id", asset_ids))


def _commit_order(table: str) -> int:
    """Owners before what refers to them."""
    return CHILD_TABLES.index(table) if table in CHILD_TABLES else len(CHILD_TABLES)
