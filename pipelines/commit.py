"""The driver's side of exactly once: results of tasks in, commits out, every few seconds, ledger rows last."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipelines.lake import CHILD_TABLES, SCHEMAS, Lake, forget_replaced
from pipelines.lake.journal import clear_journals

COMMIT_EVERY_S = 3.0


class Committer:
    """Collects RESULT rows and commits them. The first one at once, so that a user sees rows early.

    An asset is settled when its closing row and all the frames that it counts have come, in whatever order.
    """

    def __init__(self, lake: Lake, run_id: str, replacing: bool, cores: int = os.cpu_count() or 1) -> None:
        self.lake, self.run_id, self.cores = lake, run_id, cores
        self.replacing = replacing  # rows of an earlier recipe or attempt may have to go
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.first_commit_at: float | None = None
        self._fragments: dict[str, list[str]] = {}
        self._rows: dict[str, Counter[str]] = {table: Counter() for table in CHILD_TABLES}
        self._failed: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._committed_at = 0.0
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
            self._rows[table].update(counted)
        for asset_id, (count, message) in json.loads(result["failed"]).items():
            self._failed[asset_id] += count
            self._messages.setdefault(asset_id, message)
        stats = json.loads(result["stats"])
        self.seconds.update(stats["seconds"])
        self._cpu.setdefault(stats["actor"], []).append(stats["cpu"])
        self._last_result_at = time.monotonic()
        if self._first_result_at is None:
            self._first_result_at = self._last_result_at
        else:
            self._steady_frames += sum(rows["frames"].values())
        for outcome in map(json.loads, result["outcomes"]):
            self.add_outcome(outcome)
        if time.monotonic() - self._committed_at >= COMMIT_EVERY_S:
            self.flush()

    def add_outcome(self, outcome: dict[str, Any]) -> None:
        """Takes the closing row of one asset."""
        self._outcomes[outcome["asset_id"]] = outcome

    def restart_clock(self) -> None:
        """Rates count from the next result on; what came so far came while the workers were starting."""
        self._first_result_at, self._steady_frames = None, 0
        self._cpu.clear()

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

    def flush(self) -> None:
        """Commits children first, then what became of their assets, then drops what they replace."""
        complete = [o for o in self._outcomes.values() if self._came(o["asset_id"]) >= o["frames"]]
        for table in CHILD_TABLES:
            if fragments := self._fragments.pop(table, None):
                self.lake.commit(table, fragments)
        if complete:
            self._settle(complete)
        self._committed_at = time.monotonic()
        if self.first_commit_at is None:
            self.first_commit_at = time.time()

    def _came(self, asset_id: str) -> int:
        return self._rows["frames"][asset_id] + self._failed[asset_id]

    def _settle(self, complete: list[dict[str, Any]]) -> None:
        for o in complete:
            if message := self._messages.pop(o["asset_id"], None):
                o.update(stage="model", error_type="bad_output", message=message)
        now = datetime.now(UTC)
        good = [o for o in complete if o["stage"] is None]
        bad = [o for o in complete if o["stage"] is not None]
        common = {"run_id": self.run_id, "finished_at": now}
        ledger = [self._ledger_row(o) | common for o in good]
        quarantine = [self._quarantine_row(o) | common for o in bad]
        self._mark_salvaged([r["asset_id"] for r in quarantine if r["salvaged_frames"]])
        for table, rows in (("quarantine", quarantine), ("ledger", ledger)):
            if rows:
                settled = pa.Table.from_pylist(rows, SCHEMAS[table])
                self.lake.append(table, settled)
                if self.replacing:
                    forget_replaced(self.lake, settled)
        clear_journals(self.lake, [o["journal"] for o in complete if o["journal"]])
        self.counts["assets"] += len(complete)
        self.counts["quarantined"] += len(bad)
        for o in complete:
            for table, counted in self._rows.items():
                self.counts[table] += counted.pop(o["asset_id"], 0)
            self._failed.pop(o["asset_id"], None)
            self.counts["dropped"] += sum(o["dropped"].values())
            del self._outcomes[o["asset_id"]]

    def _ledger_row(self, o: dict[str, Any]) -> dict[str, Any]:
        row = {name: o.get(name) for name in ("asset_id", "run_key", "recipe", "attempt", "etag", "probe")}
        counts = {table: rows[o["asset_id"]] for table, rows in self._rows.items()}
        return {**row, **counts, "dropped": json.dumps(o["dropped"]) if o["dropped"] else None}

    def _quarantine_row(self, o: dict[str, Any]) -> dict[str, Any]:
        names = ("asset_id", "run_key", "uri", "stage", "error_type", "message", "traceback", "recipe", "attempt")
        return {**{name: o[name] for name in names}, "salvaged_frames": self._rows["frames"][o["asset_id"]]}

    def _mark_salvaged(self, asset_ids: list[str]) -> None:
        if asset_ids:
            quoted = ", ".join(f"'{i}'" for i in asset_ids)
            self.lake.update("frames", {"salvaged": "true"}, f"asset_id IN ({quoted})")
