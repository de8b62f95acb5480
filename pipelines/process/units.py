"""Units of work: how pending assets are cut for the actors.

A unit is a few row numbers of `assets`, so a million assets are a few megabytes in the driver. Units start small, so that the
first rows are committed within seconds, and grow, so that fragments are few. A task makes all of a unit's rows or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import SCHEMAS, Lake

FIRST_UNIT, LARGEST_UNIT = 16, 1024  # in images' worth of work
LEAST_SHARE = 64  # in images' worth; a smaller unit spends its time on being handed out and written
UNUSED = ("discovered_at", "caption", "label")  # of an asset, to who decodes it
VIDEO_COST = 24  # a short video, in images


def asset_costs(media_type: pa.Array, size: pa.Array) -> np.ndarray:
    """Rough work of each asset in images' worth: 1 for a still, growing with its bytes for a video. float64 (N,)."""
    video = ~pc.fill_null(pc.equal(media_type, "image"), False).to_numpy(zero_copy_only=False)
    size_mb = np.nan_to_num(size.cast(pa.float64()).to_numpy(zero_copy_only=False)) / 2**20
    return np.where(video, VIDEO_COST + 8 * size_mb, 1 + size_mb / 4)


def cut_units(
    batches: Iterable[pa.RecordBatch], first: float = FIRST_UNIT, largest: float = LARGEST_UNIT
) -> Iterator[pa.Table]:
    """Cuts pending assets (with `_rowid`, media_type, size and, in a retry, attempt) into units of about equal work.

    Yields tables of row_id (uint64), attempt (int32, from 1) and cost (float64, in images' worth).
    """
    held: list[tuple[np.ndarray, ...]] = []  # parts of the unit: rows, attempts, costs
    budget, filled = float(first), 0.0
    for batch in batches:
        costs = asset_costs(batch["media_type"], batch["size"])
        rows, total = batch["_rowid"].to_numpy(), np.cumsum(costs)
        tries = batch["attempt"].to_numpy() + 1 if "attempt" in batch.schema.names else np.ones(len(rows), np.int32)
        start = 0
        while start < len(rows):
            before = total[start - 1] if start else 0.0
            end = max(start, int(np.searchsorted(total, before + budget - filled, side="right")))
            end += end == start and not held  # a unit has one asset at least, whatever it costs
            if end > start:
                held.append((rows[start:end], tries[start:end], costs[start:end]))
                filled, start = filled + total[end - 1] - before, end
            if start < len(rows):
                yield _unit(*map(np.concatenate, zip(*held)))
                held, filled, budget = [], 0.0, min(budget * 2, largest)
    if held:
        yield _unit(*map(np.concatenate, zip(*held)))


def share_out(units: list[pa.Table], workers: int) -> list[pa.Table]:
    """Cuts units anew for several workers: first a small one for each, then shares of what is left, smaller and smaller.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): with units that only grow, one worker would end long after the
    others. A single worker's units stay as they are.
    """
    if workers < 2 or not units:
        return units
    rows = pa.concat_tables(units)
    costs = rows["cost"].to_numpy()
    left = float(costs.sum())
    least = min(LEAST_SHARE, left / workers)
    shared: list[pa.Table] = []
    start, filled, budget = 0, 0.0, min(FIRST_UNIT, left / workers)
    for i, cost in enumerate(costs):
        if i > start and filled + cost > budget:
            shared.append(rows.slice(start, i - start))
            left, start, filled = left - filled, i, 0.0
            first = len(shared) < workers
            budget = budget if first else min(max(left / (2 * workers), least), LARGEST_UNIT)
        filled += cost
    shared.append(rows.slice(start))
    return shared


def read_unit(lake: Lake, version: int, unit: pa.Table) -> pa.Table:
    """The asset rows of a unit, at the version of `assets` that it was cut from, with their attempt."""
    columns = [name for name in SCHEMAS["assets"].names if name not in UNUSED]
    rows = lake.attempt("read assets", lambda _: lake.take("assets", unit["row_id"].to_pylist(), version, columns))
    return rows.append_column("attempt", unit["attempt"])


def empty_unit() -> pa.Table:
    """A unit of no assets: what runs it shows that a worker can be built."""
    return _unit(np.empty(0), np.empty(0), np.empty(0))


def _unit(rows: np.ndarray, attempts: np.ndarray, costs: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array(rows.astype(np.uint64)),
            "attempt": pa.array(attempts.astype(np.int32)),
            "cost": pa.array(costs.astype(np.float64)),
        }
    )
