"""The write op: working tables in, Lance fragments on disk, and one small row for the driver to commit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.detect import DETECTED, detection_rows
from pipelines.frames import is_frame
from pipelines.lake import CHILD_TABLES, SCHEMAS, Lake

FLUSH_BYTES = 12 << 20  # what is left to write when the last frame is embedded keeps nobody busy but the writer

RESULT = pa.schema(
    [
        ("fragments", pa.string()),  # JSON {table: [fragment]}
        ("rows", pa.string()),  # JSON {table: {asset_id: rows written}}
        ("failed", pa.string()),  # JSON {asset_id: [frames that an op failed on, first message]}
        ("outcomes", pa.list_(pa.string())),
        ("stats", pa.string()),  # JSON {stage: seconds}
    ]
)


class WriteRows:
    """Op: the last of a chain. Writes fragments in a thread of its own while the next frames are embedded.

    Nothing it writes is visible before the driver commits it; fragments of a task that dies are never referenced.
    """

    def __init__(self, lake: Lake, embeddings: list[pa.Field], detector: str = "") -> None:
        self.lake, self.detector = lake, detector
        self.schema = pa.schema([*SCHEMAS["frames"], *embeddings])

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields one RESULT row when the input ends."""
        outcomes: list[dict[str, Any]] = []
        failed: dict[str, list[Any]] = {}
        rows: dict[str, Counter[str]] = {table: Counter() for table in CHILD_TABLES}
        fragments: dict[str, list[str]] = {table: [] for table in CHILD_TABLES}
        waiting: list[pa.Table] = []
        futures: list[Future[list[str]]] = []
        found: list[pa.Table] = []
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            for table in tables:
                outcomes += [json.loads(o) for o in table["outcome"].drop_null().to_pylist()]
                frames = table if table["outcome"].null_count == table.num_rows else table.filter(is_frame(table))
                if frames["error"].null_count < frames.num_rows:  # else no JPEG need be copied
                    for row in frames.filter(frames["error"].is_valid()).select(["asset_id", "error"]).to_pylist():
                        failed.setdefault(row["asset_id"], [0, row["error"]])[0] += 1
                    frames = frames.filter(frames["error"].is_null())
                if DETECTED in frames.schema.names:
                    found.append(detection_rows(frames, self.detector))
                    rows["detections"].update(found[-1]["asset_id"].to_pylist())
                frames = frames.select(self.schema.names)
                if frames.num_rows:
                    rows["frames"].update(frames["asset_id"].to_pylist())
                    waiting.append(frames)
                if sum(t.nbytes for t in waiting) >= FLUSH_BYTES:
                    if futures:  # never more than one flush behind
                        futures[-1].result()
                    futures.append(pool.submit(self._write, "frames", waiting))
                    waiting = []
            futures.append(pool.submit(self._write, "frames", waiting))
            fragments["frames"] = [f for future in futures for f in future.result()]
        fragments["detections"] = self._write("detections", found)
        fragments["shots"] = self._write("shots", [shot_rows(o) for o in outcomes if o["shots"]])
        for outcome in outcomes:
            rows["shots"][outcome["asset_id"]] = len(outcome["shots"])
            rows["tracks"][outcome["asset_id"]] = outcome["tracks"]
            for table_name, written in outcome.pop("written").items():
                fragments[table_name] += written
        yield pa.Table.from_pylist(
            [
                {
                    "fragments": json.dumps({t: f for t, f in fragments.items() if f}),
                    "rows": json.dumps(rows),
                    "failed": json.dumps(failed),
                    "outcomes": [json.dumps(o) for o in outcomes],
                    "stats": "{}",
                }
            ],
            RESULT,
        )

    def _write(self, table: str, parts: list[pa.Table]) -> list[str]:
        parts = [p for p in parts if p.num_rows]
        return self.lake.write_fragments(table, pa.concat_tables(parts)) if parts else []


def shot_rows(outcome: dict[str, Any]) -> pa.Table:
    """Rows of `shots` from an asset's outcome."""
    owner = {"asset_id": outcome["asset_id"], "run_key": outcome["run_key"]}
    return pa.Table.from_pylist([{**shot, **owner} for shot in outcome["shots"]], SCHEMAS["shots"])
