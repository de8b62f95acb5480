"""The ledger: which assets are settled, which are pending, and what a killed run left behind.

Rows derived from an asset carry its id and a run key (recipe and attempt). They count once a ledger row, or a quarantine row
with salvaged frames, has the same pair; that row is always committed last. Everything else is swept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.lake import Lake
from pipelines.lake.schema import CHILD_TABLES

PLAN_COLUMNS = ["asset_id", "media_type", "size"]


@dataclass(frozen=True)
class Settled:
    """Assets that need no work under one recipe."""

    asset_ids: pa.Array

    def pending(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Those rows of an `assets` batch that are not settled."""
        return batch.filter(pc.invert(pc.is_in(batch["asset_id"], value_set=self.asset_ids)))


def settled_assets(lake: Lake, recipe: str) -> Settled:
    """Assets with a ledger row of this recipe, and quarantined ones of this recipe (which only a retry runs again)."""
    quoted = f"recipe = '{recipe}'"
    ids = [
        batch["asset_id"]
        for table in ("ledger", "quarantine")
        for batch in lake.scan(table, ["asset_id"], filter=quoted)
    ]
    return Settled(pa.concat_arrays(ids) if ids else pa.array([], pa.string()))


def pending_assets(lake: Lake, recipe: str, batch_size: int = 65536) -> Iterator[pa.RecordBatch]:
    """Streams the assets that a run of this recipe still has to do (PLAN_COLUMNS and `_rowid`)."""
    settled = settled_assets(lake, recipe)
    for batch in lake.scan("assets", PLAN_COLUMNS, with_row_id=True, batch_size=batch_size):
        if (rows := settled.pending(batch)).num_rows:
            yield rows


def quarantined_assets(lake: Lake, recipe: str) -> Iterator[pa.RecordBatch]:
    """Streams the assets that a retry runs: those in quarantine, with the attempts that they had as `attempt`."""
    rows = lake.read("quarantine", ["asset_id", "attempt"], filter=f"recipe = '{recipe}'")
    if not rows.num_rows:
        return
    attempts = rows.group_by("asset_id").aggregate([("attempt", "max")]).rename_columns(["asset_id", "attempt"])
    for batch in lake.scan("assets", PLAN_COLUMNS, with_row_id=True):
        joined = pa.Table.from_batches([batch]).join(attempts, "asset_id", join_type="inner")
        yield from joined.to_batches()


def sweep(lake: Lake) -> dict[str, int]:
    """Removes what no settled asset owns: rows of runs that were killed, of replaced recipes, of changed assets.

    Returns how many rows went, by table. Streams: memory is that of the ledger's keys.
    """
    removed = {"ledger": _keep_newest(lake)}
    owners = _owners(lake)
    for table in CHILD_TABLES:
        orphans: dict[str, set[str]] = {}
        for batch in lake.scan(table, ["asset_id", "run_key"]):
            keys = _pair(batch)
            stray = batch.filter(pc.invert(pc.is_in(keys, value_set=owners)))
            if stray.num_rows:
                for row in pa.Table.from_batches([stray]).group_by(["asset_id", "run_key"]).aggregate([]).to_pylist():
                    orphans.setdefault(row["run_key"], set()).add(row["asset_id"])
        removed[table] = sum(
            lake.delete(table, "asset_id", sorted(ids), f"run_key = '{run_key}'") for run_key, ids in orphans.items()
        )
    return {table: n for table, n in removed.items() if n}


def forget_replaced(lake: Lake, settled: pa.Table) -> None:
    """After a commit of ledger or quarantine rows: drops older rows of the same assets, with what they owned.

    settled: asset_id, run_key. Children go first, so that a kill in between leaves rows that `sweep` finds.
    """
    for run_key in pc.unique(settled["run_key"]).to_pylist():
        ids = settled.filter(pc.equal(settled["run_key"], run_key))["asset_id"].to_pylist()
        for table in (*CHILD_TABLES, "ledger", "quarantine"):
            if lake.count(table):
                lake.delete(table, "asset_id", ids, f"run_key <> '{run_key}'")


@dataclass
class LakeReport:
    """What `verify_lake` found. `violations` is empty for a whole lake."""

    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def verify_lake(lake: Lake) -> LakeReport:
    """Checks that every asset is settled exactly once, that every row has an owner, and that counts agree."""
    report = LakeReport({t: lake.count(t) for t in ("assets", *CHILD_TABLES, "ledger", "quarantine")})
    assets, ledger = lake.read("assets", ["asset_id"]), lake.read("ledger", ["asset_id", "run_key", *CHILD_TABLES])
    quarantine = lake.read("quarantine", ["asset_id", "run_key", "salvaged_frames"])
    settled = pa.concat_arrays(
        [*ledger["asset_id"].chunks, *quarantine["asset_id"].chunks] or [pa.array([], pa.string())]
    )
    both = pc.is_in(ledger["asset_id"], value_set=quarantine["asset_id"])
    _note(report, ledger["asset_id"].filter(both), "in the ledger and in the quarantine")
    counts = pc.value_counts(settled)
    if len(counts):
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        _note(report, twice, "settled more than once")
    known = pc.is_in(assets["asset_id"], value_set=settled)
    _note(report, assets["asset_id"].filter(pc.invert(known)), "pending (neither in the ledger nor in the quarantine)")
    ghosts = pc.invert(pc.is_in(settled, value_set=assets["asset_id"]))
    _note(report, settled.filter(ghosts), "settled but not among the assets")
    for table in CHILD_TABLES:
        _verify_table(lake, table, ledger, quarantine, report)
    return report


def _verify_table(lake: Lake, table: str, ledger: pa.Table, quarantine: pa.Table, report: LakeReport) -> None:
    id_column = {"shots": "shot_id", "frames": "frame_id", "detections": "detection_id"}.get(table)
    found: dict[tuple[str, str], int] = {}
    seen = 0
    distinct: list[np.ndarray] = []
    for batch in lake.scan(table, ["asset_id", "run_key", *([id_column] if id_column else [])]):
        grouped = pa.Table.from_batches([batch]).group_by(["asset_id", "run_key"]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            key = (row["asset_id"], row["run_key"])
            found[key] = found.get(key, 0) + row["count_all"]
        if id_column:
            seen += batch.num_rows
            distinct.append(np.fromiter((hash(v) for v in batch[id_column].to_pylist()), np.int64, batch.num_rows))
    if id_column and seen and len(np.unique(np.concatenate(distinct))) != seen:
        report.violations.append(f"{table}: {id_column} is not unique")
    expected = {
        (r["asset_id"], r["run_key"]): r[table] for r in ledger.select(["asset_id", "run_key", table]).to_pylist()
    }
    if table == "frames":
        for row in quarantine.to_pylist():
            expected[row["asset_id"], row["run_key"]] = row["salvaged_frames"]
    else:  # a salvaged asset may own shots, detections and tracks of its good part
        for row in quarantine.to_pylist():
            key = (row["asset_id"], row["run_key"])
            expected[key] = found.get(key, 0)
    wrong = [key for key in found.keys() | expected.keys() if found.get(key, 0) != (expected.get(key) or 0)]
    for asset_id, run_key in wrong[:5]:
        key = (asset_id, run_key)
        report.violations.append(
            f"{table}: asset {asset_id} has {found.get(key, 0)} rows of {run_key}, its ledger row says {expected.get(key, 0)}"
        )
    if len(wrong) > 5:
        report.violations.append(f"{table}: and {len(wrong) - 5} more assets whose counts differ")


def _note(report: LakeReport, ids: pa.Array | pa.ChunkedArray, what: str) -> None:
    if len(ids):
        report.violations.append(f"{len(ids)} assets are {what}, such as {ids[0].as_py()}")


def _pair(batch: pa.RecordBatch | pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(batch["asset_id"], batch["run_key"], "/")


def _owners(lake: Lake) -> pa.Array:
    keys = [
        _pair(batch)
        for table, only in (("ledger", None), ("quarantine", "salvaged_frames > 0"))
        for batch in lake.scan(table, ["asset_id", "run_key"], filter=only)
    ]
    return pa.concat_arrays(keys) if keys else pa.array([], pa.string())


def _keep_newest(lake: Lake) -> int:
    """Of several settled rows of one asset (a kill between a commit and `forget_replaced`), keeps the one written last."""
    rows = pa.concat_tables(
        [lake.read(t, ["asset_id", "run_key", "finished_at"]).append_column("t", pa.array([t] * lake.count(t), pa.string()))
         for t in ("ledger", "quarantine")]
    )  # fmt: skip
    counts = pc.value_counts(rows["asset_id"])
    if not len(counts):
        return 0
    doubled = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    rows = rows.filter(pc.is_in(rows["asset_id"], value_set=doubled)).sort_by(
        [("asset_id", "ascending"), ("finished_at", "descending")]
    )
    removed, newest = 0, None
    for row in rows.to_pylist():
        if row["asset_id"] != newest:
            newest = row["asset_id"]
        else:
            removed += lake.delete(row["t"], "asset_id", [row["asset_id"]], f"run_key = '{row['run_key']}'")
    return removed
