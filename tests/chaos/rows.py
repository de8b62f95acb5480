"""Two lakes compared row by row, by what a user reads: never by files, fragments or versions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipelines.lake import Lake, verify_lake
from pipelines.lake.verify import KEYS

# What differs between any two runs.
VOLATILE = {
    "run_id", "finished_at", "discovered_at", "started_at", "ended_at", "efficiency", "counts", "traceback", "error",
    "generation", "asset_no",  # a key of table versions, too
}  # fmt: skip
# A retry that is killed after its commit and given again is a second retry: it counts one attempt more.
ATTEMPT = {"attempt", "run_key"}
COSINE, PIXELS = 0.9999, 0.5


def differences(expected: Lake, got: Lake, ignore: set[str] = frozenset()) -> list[str]:
    """Sentences about rows that were lost, doubled or changed; empty when the lakes hold the same."""
    pending = set(verify_lake(expected).violations)  # such as assets that nobody has processed yet
    found = [f"verify: {v}" for v in verify_lake(got).violations if v not in pending]
    for table, key in KEYS.items():
        if table != "runs":
            found += _table(table, key, expected, got, VOLATILE | ignore)
    return found


def _table(table: str, key: tuple[str, ...], expected: Lake, got: Lake, ignore: set[str]) -> list[str]:
    want, have = ([dict(r) for r in lake.read(table).to_pylist()] for lake in (expected, got))
    if len(want) != len(have):
        return [f"{table}: {len(have)} rows, not {len(want)}"]
    rows = {tuple(r[k] for k in key): r for r in have}
    found = []
    for row in want:
        other = rows.get(tuple(row[k] for k in key))
        if other is None:
            found.append(f"{table}: row {[row[k] for k in key]} is missing")
            continue
        for column in (row.keys() | other.keys()) - ignore:
            if not _same(column, row.get(column), other.get(column)):
                found.append(f"{table}.{column} of {[row[k] for k in key]}: {str(other.get(column))[:80]}")
    return found[:20]


def _same(column: str, a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    if column.startswith("emb_"):
        u, v = np.asarray(a, float), np.asarray(b, float)
        return float(u @ v / max(np.linalg.norm(u) * np.linalg.norm(v), 1e-12)) >= COSINE
    if column == "box":
        return bool(np.abs(np.asarray(a) - np.asarray(b)).max() <= PIXELS)
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(k, a[k], b[k]) for k in a)
    return bool(a == b)
