"""The write op: working tables in, Lance fragments on disk, and one small row for the driver to commit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.frames import is_frame
from pipelines.lake import SCHEMAS, Lake

FLUSH_BYTES = 48 << 20

RESULT = pa.schema(
    [
        ("fragments", pa.string()),  # JSON {table: [fragment]}
        ("frames", pa.string()),  # JSON {asset_id: frames written}
        ("failed", pa.string()),  # JSON {asset_id: [frames that an op failed on, first message]}
        ("outcomes", pa.list_(pa.string())),
        ("stats", pa.string()),  # JSON {stage: seconds}
    ]
)


class WriteRows:
    """Op: the last of a chain. Writes fragments in a thread of its own while the next frames are embedded.

    Nothing it writes is visible before the driver commits it; fragments of a task that dies are never referenced.
    """

    def __init__(self, lake: Lake, embeddings: list[pa.Field]) -> None:
        self.lake = lake
        self.schema = pa.schema([*SCHEMAS["frames"], *embeddings])

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields one RESULT row when the input ends."""
        outcomes: list[dict[str, Any]] = []
        failed: dict[str, list[Any]] = {}
        written: Counter[str] = Counter()
        waiting: list[pa.Table] = []
        futures: list[Future[list[str]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            for rows in tables:
                outcomes += [json.loads(o) for o in rows["outcome"].drop_null().to_pylist()]
                frames = rows.filter(is_frame(rows))
                for row in frames.filter(frames["error"].is_valid()).select(["asset_id", "error"]).to_pylist():
                    failed.setdefault(row["asset_id"], [0, row["error"]])[0] += 1
                frames = frames.filter(frames["error"].is_null()).select(self.schema.names)
                if frames.num_rows:
                    written.update(frames["asset_id"].to_pylist())
                    waiting.append(frames)
                if sum(t.nbytes for t in waiting) >= FLUSH_BYTES:
                    if futures:  # never more than one flush behind
                        futures[-1].result()
                    futures.append(pool.submit(self._write, "frames", waiting))
                    waiting = []
            if waiting:
                futures.append(pool.submit(self._write, "frames", waiting))
            fragments = {"frames": [f for future in futures for f in future.result()]}
        shots = [shot_rows(o) for o in outcomes if o["shots"]]
        if shots:
            fragments["shots"] = self._write("shots", shots)
        yield pa.Table.from_pylist(
            [
                {
                    "fragments": json.dumps(fragments),
                    "frames": json.dumps(written),
                    "failed": json.dumps(failed),
                    "outcomes": [json.dumps(o) for o in outcomes],
                    "stats": "{}",
                }
            ],
            RESULT,
        )

    def _write(self, table: str, parts: list[pa.Table]) -> list[str]:
        return self.lake.write_fragments(table, pa.concat_tables(parts))


def shot_rows(outcome: dict[str, Any]) -> pa.Table:
    """Rows of `shots` from an asset's outcome."""
    owner = {"asset_id": outcome["asset_id"], "run_key": outcome["run_key"]}
    return pa.Table.from_pylist([{**shot, **owner} for shot in outcome["shots"]], SCHEMAS["shots"])
