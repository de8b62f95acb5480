"""The ledger: which assets are settled, which are pending, and what a killed run left behind.

Rows derived from an asset carry its id and a run key (the key that they are of, and the attempt). They count once a ledger row,
or a quarantine row with salvaged frames, has the same pair; that row is always committed last. Everything else is swept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake.arrow import row_hashes, rows_hashed
from pipelines.lake.coverage import asset_numbers, assets_in, settled_assets
from pipelines.lake.keys import derived_tables, op_tables
from pipelines.lake.lake import Lake
from pipelines.lake.partitioned import Partitioned
from pipelines.lake.sql import equals, literal, one_of

PLAN_COLUMNS = ["asset_id", "media_type", "size", "asset_no"]
DECODED = ("shots", "frames", "dropped")  # what decoding an asset makes; an op's own table is made by the op


@dataclass(frozen=True)
class Work:
    """What assets are to be settled in: decoding under a recipe (`op` None), or an op on videos, whose videos are decoded.

    key: the recipe's hash, or the op's key. decoded: the hash of the recipe that has decoded what the op sees. replaces:
    whether rows of another key, or of an earlier attempt, may be there.
    """

    key: str
    op: str | None = None
    decoded: str = ""
    replaces: bool = False

    @property
    def where(self) -> str:
        """SQL over ledger and quarantine: rows of this work."""
        return f"{equals('recipe', self.key)} AND {equals('op', self.op)}"


def of_decoding(lake: Lake, table: str = "ledger") -> str | None:
    """SQL for rows of ledger or quarantine that speak of decoding, not of an op; None where an older format has no others."""
    return "op IS NULL" if "op" in lake.schema(table).names else None


def recipes_of_runs(lake: Lake) -> list[tuple[str, str]]:
    """Hash and YAML of the recipe of each `process` run that has written its own down, oldest first."""
    runs = lake.read("runs", ["started_at", "recipe", "recipe_yaml"], "command = 'process'").sort_by("started_at")
    return [(r["recipe"], r["recipe_yaml"]) for r in runs.to_pylist() if r["recipe_yaml"]]


class PendingAssets:
    """The assets that are still to be settled; the quarantined are not. Its length is known at once; it streams batches of
    PLAN_COLUMNS and `_rowid`, of the lake as it is when they are asked for."""

    def __init__(self, lake: Lake, work: Work) -> None:
        there = assets_in(lake, "assets") if work.op is None else assets_in(lake, "ledger", _of_videos(work.decoded))
        self.lake = lake
        self.numbers = there.without(settled_assets(lake, work.where))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if not len(self):  # then no id need be read
            return
        for batch in self.lake.scan("assets", PLAN_COLUMNS, with_row_id=True, batch_size=65536):
            wanted = self.numbers.contains(asset_numbers(batch["asset_no"]))
            if wanted.any():
                yield batch.filter(pa.array(wanted))


def _of_videos(decoded: str) -> str:
    """SQL over the ledger: videos that were decoded whole under a recipe."""
    return f"{equals('recipe', decoded)} AND op IS NULL AND probe.codec IS NOT NULL"


def quarantined_assets(lake: Lake, work: Work) -> Iterator[pa.RecordBatch]:
    """Streams the assets that a retry runs: those in quarantine, with the attempts that they had as `attempt`."""
    rows = lake.read("quarantine", ["asset_id", "attempt"], filter=work.where)
    if not rows.num_rows:
        return
    attempts = rows.group_by("asset_id").aggregate([("attempt", "max")]).rename_columns(["asset_id", "attempt"])
    for batch in lake.scan("assets", PLAN_COLUMNS, with_row_id=True):
        joined = pa.Table.from_batches([batch]).join(attempts, "asset_id", join_type="inner")
        yield from joined.to_batches()


def sweep(lake: Lake) -> dict[str, int]:
    """Removes what no settled asset owns: rows of runs that were killed, of replaced recipes, of changed assets.

    Returns how many rows went, by table. Streams: of keys, a part is held at a time, and what goes.
    """
    removed = {"ledger": _keep_newest(lake)}
    owners = _pairs(lake, "ledger", "quarantine", where={"quarantine": "salvaged_frames > 0"})
    for table in filter(lake.count, derived_tables(lake)):
        strays = [np.setdiff1d(*parts) for parts in zip(_pairs(lake, table), owners)]
        orphans: dict[str, set[str]] = {}
        for asset_id, run_key in rows_hashed(lake, table, ["asset_id", "run_key"], np.concatenate(strays)):
            orphans.setdefault(run_key, set()).add(asset_id)
        removed[table] = sum(
            lake.delete(table, "asset_id", sorted(ids), equals("run_key", run_key)) for run_key, ids in orphans.items()
        )
    return {table: n for table, n in removed.items() if n}


def forget_replaced(lake: Lake, settled: pa.Table, op: str | None = None, table: str | None = None) -> None:
    """After a commit of ledger or quarantine rows: drops older rows of the same assets and work, with what they owned.

    settled: asset_id, run_key. op, table: of an op on videos, its name in the recipe and its table; else what decoding and the
    ops on frames have made goes, but what another sampling of the same pictures has. Children go first, so that a kill in
    between leaves rows that `sweep` finds.
    """
    same = equals("op", op)
    owned = {table: same} if table is not None else dict.fromkeys(_of_frames(lake))
    gone: dict[tuple[str, str], list[str]] = {}
    for older in _replaced(_settled(lake, same, settled["asset_id"].to_pylist())):
        gone.setdefault((older["t"], older["run_key"]), []).append(older["asset_id"])
    for (where, run_key), ids in gone.items():
        for name, only in (*owned.items(), (where, same)):
            if lake.count(name):
                lake.delete(name, "asset_id", ids, equals("run_key", run_key) + (f" AND {only}" if only else ""))


def _settled(lake: Lake, where: str, ids: list[str]) -> list[dict[str, Any]]:
    """Rows of ledger and quarantine of some assets; `t` says of which."""
    columns = ["asset_id", "run_key", "recipe", "finished_at", "op"]
    found: list[dict[str, Any]] = []
    for start in range(0, len(ids), 2000):
        own = one_of("asset_id", ids[start : start + 2000])
        for table in ("ledger", "quarantine"):
            rows = lake.read(table, columns, f"{own} AND {where}").to_pylist()
            found += [{**row, "t": table} for row in rows]
    return found


def _replaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of settled rows, those that the newest of the same asset and op replaces: all, but good ones under another sampling."""
    newest: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in rows:
        work = (row["asset_id"], row["op"])
        if work not in newest or _when(row) > _when(newest[work]):
            newest[work] = row

    def stays(row: dict[str, Any]) -> bool:
        last = newest[row["asset_id"], row["op"]]
        if row is last:
            return True
        other = row["recipe"] != last["recipe"] and decoding_of(row["recipe"]) == decoding_of(last["recipe"])
        return other and row["t"] == "ledger"

    return [row for row in rows if not stays(row)]


def _when(row: dict[str, Any]) -> float:
    return row["finished_at"].timestamp() if row["finished_at"] else 0.0


def decoding_of(recipe: str) -> str:
    """The half of a recipe's hash that is not its sampling's."""
    return recipe.partition("-")[0]


def other_samplings(recipe: str) -> str:
    """SQL over the ledger: what was decoded under another sampling of the same pictures. recipe: a recipe's hash."""
    return f"op IS NULL AND starts_with(recipe, {literal(decoding_of(recipe) + '-')}) AND recipe <> {literal(recipe)}"


def _of_frames(lake: Lake) -> list[str]:
    """Tables whose rows are made with the frames."""
    return list(dict.fromkeys((*DECODED, "detections", *op_tables(lake, "frame"))))


def _pairs(lake: Lake, *tables: str, where: Mapping[str, str] | None = None) -> Partitioned:
    """Hashes of assets and run keys of tables. where: of a table, which of its rows."""
    pairs = Partitioned(1)
    for table in tables:
        for batch in lake.scan(table, ["asset_id", "run_key"], (where or {}).get(table)):
            pairs.add(np.unique(row_hashes(*batch.columns)))
    return pairs


def _keep_newest(lake: Lake) -> int:
    """Of several settled rows of one asset and op (a kill between a commit and `forget_replaced`), removes the replaced."""
    works = Partitioned(1)
    for table in ("ledger", "quarantine"):
        for batch in lake.scan(table, ["asset_id", "op"]):
            works.add(row_hashes(*batch.columns))
    doubled: set[str] = set()
    for part in works:
        keys, counts = np.unique(part, return_counts=True)
        for table in ("ledger", "quarantine"):
            doubled.update(asset_id for asset_id, _ in rows_hashed(lake, table, ["asset_id", "op"], keys[counts > 1]))
    removed = 0
    for row in _replaced(_settled(lake, "asset_id IS NOT NULL", sorted(doubled))):
        removed += lake.delete(row["t"], "asset_id", [row["asset_id"]], equals("run_key", row["run_key"]))
    return removed
