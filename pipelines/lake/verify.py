"""The proof that a lake is whole: keys are unique, references hold, every asset is settled once, counts agree, and what ops are
done with, as the lake's coverage says, has their values. What no op has claimed yet is pending, and no violation.

It reads values, never files or fragments, and streams: of keys, a part is held at a time (`partitioned`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipelines.lake import annotation_rows
from pipelines.lake.arrow import row_hashes, rows_hashed
from pipelines.lake.coverage import AssetSet, asset_numbers, covered
from pipelines.lake.keys import op_keys
from pipelines.lake.lake import Lake
from pipelines.lake.ledger import of_decoding, recipes_of_runs
from pipelines.lake.partitioned import Partitioned
from pipelines.lake.schema import CHILD_TABLES, facts_of, wants_value
from pipelines.lake.sql import equals, literal

# What names a row of each table; selections: a frame that was drawn twice has two ranks.
KEYS = {
    "assets": ("asset_id",),
    "shots": ("shot_id",),
    "frames": ("frame_id",),
    "dropped": ("frame_id",),
    "detections": ("detection_id",),
    "tracks": ("track_id", "frame_index"),
    "ledger": ("asset_id", "op", "recipe"),
    "quarantine": ("asset_id", "op", "recipe"),
    "selections": ("selection", "frame_id", "rank"),
    "runs": ("run_id",),
    "annotations": ("annotation_id", "version"),
}
# (table, column) -> the table and column that it refers to.
REFERENCES = {
    ("frames", "shot_id"): ("shots", "shot_id"),
    ("detections", "frame_id"): ("frames", "frame_id"),
    ("annotations", "asset_id"): ("assets", "asset_id"),
}

NAMED = 5  # examples of what is wrong


@dataclass
class LakeReport:
    """What `verify_lake` found. `violations` is empty for a whole lake; `pending` says which values may still come."""

    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


def verify_lake(lake: Lake) -> LakeReport:
    """Checks keys, references, settlement, counts and coverage of a lake. Each finding is a sentence."""
    report = LakeReport({t: lake.count(t) for t in ("assets", *CHILD_TABLES, "ledger", "quarantine", "annotations")})
    for table, key in KEYS.items():
        _verify_keys(lake, table, key, report)
    for (table, column), (other, target) in REFERENCES.items():
        strays = _strays(lake, table, column, _keys(lake, other, (target,)))
        if strays:
            report.violations.append(f"{table}: {strays} rows refer to a {column} that {other} does not have")
    _verify_settled(lake, report)
    _verify_pictures(lake, report)
    _verify_values(lake, report)
    _verify_selections(lake, report)
    report.violations += annotation_rows.violations(lake)
    return report


def _verify_keys(lake: Lake, table: str, key: tuple[str, ...], report: LakeReport) -> None:
    twice = sum(len(part) - len(np.unique(part)) for part in _keys(lake, table, key))
    if twice:
        report.violations.append(f"{table}: {' and '.join(key)} is not unique: {twice} rows are doubled")


def _verify_settled(lake: Lake, report: LakeReport) -> None:
    """Every asset is settled, and no other; nothing is both in the ledger and in the quarantine; each has the frames and the
    shots that its row there says."""
    settled, ours, theirs = Partitioned(1), Partitioned(3), Partitioned(2)
    said = {"ledger": ["shots", "frames"], "quarantine": ["salvaged_frames"]}
    for table, rows in (("ledger", ours), ("quarantine", theirs)):
        for batch in lake.scan(table, ["asset_id", "run_key", *said[table]], of_decoding(lake, table)):
            settled.add(row_hashes(batch["asset_id"]))
            rows.add(_pairs(batch), *(_numbers(batch[column]) for column in said[table]))
    pending, ghosts = _Found(), _Found()
    for assets, known in zip(_keys(lake, "assets", ("asset_id",)), settled):
        pending.add(assets[~np.isin(assets, known)])
        ghosts.add(known[~np.isin(known, assets)])
    both = _Found()
    for left, right in zip(ours, theirs):
        both.add(left[np.isin(left[:, 0], right[:, 0]), 0])
    for found, tables, columns, what in (
        (both, ("ledger",), ["asset_id", "run_key"], "in the ledger and in the quarantine"),
        (pending, ("assets",), ["asset_id"], "pending (neither in the ledger nor in the quarantine)"),
        (ghosts, ("ledger", "quarantine"), ["asset_id"], "settled but not among the assets"),
    ):
        for asset_id, *_ in found.names(lake, tables, columns)[:1]:
            report.violations.append(f"{found.count} assets are {what}, such as {asset_id}")
    _verify_counts(lake, ("frames", "dropped"), None, _said(ours, 2, theirs), report)
    # A salvaged asset may own shots of its good part, however many.
    _verify_counts(lake, ("shots",), None, _said(ours, 1), report, theirs)
    twice = sum(
        len(np.intersect1d(*parts)) for parts in zip(*(_keys(lake, t, ("frame_id",)) for t in ("frames", "dropped")))
    )
    if twice:
        report.violations.append(f"{twice} frames are in frames and in dropped")
    _verify_op_tables(lake, report)


def _verify_op_tables(lake: Lake, report: LakeReport) -> None:
    """Rows of ops' own tables: as many as each frame, or the ledger row of each video, says."""
    for title, key in op_keys(lake).items():
        table = key["table"]
        if not table or lake.dataset(table) is None:
            continue
        if key["unit"] == "frame":
            _verify_rows(lake, title, key, report)
            continue
        where, said = equals("op", title), Partitioned(2)
        for batch in lake.scan("ledger", ["asset_id", "run_key", "rows"], where):
            said.add(_pairs(batch), _numbers(batch["rows"]))
        _verify_counts(lake, (table,), where, said, report)


def _verify_rows(lake: Lake, title: str, key: dict[str, Any], report: LakeReport) -> None:
    """Rows of a frame op's table: as many of each frame as its count column says."""
    table, (column,) = key["table"], key["columns"]
    said, there = Partitioned(2), Partitioned(2)
    for source in ("frames", "dropped"):
        for batch in lake.scan(source, ["frame_id", column], f"{column} > 0"):
            said.add(row_hashes(batch["frame_id"]), _numbers(batch[column]))
    for batch in lake.scan(table, ["frame_id"], equals("op", title)):
        there.add(row_hashes(batch["frame_id"]), np.ones(batch.num_rows, np.int64))
    if any(len(_differing(*parts)) for parts in zip(said, there)):
        want = sum(int(part[:, 1].sum()) for part in said)
        report.violations.append(
            f"{table}: rows of op {title} are not those that {column} counts: there are {len(there)}, of {want}"
        )


def _said(ledger: Partitioned, column: int, quarantine: Partitioned | None = None) -> Partitioned:
    """(pair, rows) as ledger and quarantine say."""
    said = Partitioned(2)
    for ours in ledger:
        said.add(ours[:, 0], ours[:, column])
    for theirs in quarantine or ():
        said.add(theirs[:, 0], theirs[:, 1])
    return said


def _verify_counts(
    lake: Lake,
    tables: tuple[str, ...],
    where: str | None,
    said: Partitioned,
    report: LakeReport,
    excused: Partitioned | None = None,
) -> None:
    """Each asset and run key has as many rows in tables as is said. excused: pairs that may have any number."""
    there = Partitioned(2)
    for table in tables:
        for batch in lake.scan(table, ["asset_id", "run_key"], where):
            there.add(_pairs(batch), np.ones(batch.num_rows, np.int64))
    wrong, counts = _Found(), dict[int, tuple[int, int]]()
    for want, have, free in zip(said, there, excused or Partitioned(2)):
        differing = _differing(want, have)
        differing = differing[~np.isin(differing[:, 0], free[:, 0])]
        wrong.add(differing[:, 0])
        counts |= {pair: (found, expected) for pair, expected, found in differing[:NAMED].tolist()}
    for asset_id, run_key in wrong.names(lake, ("ledger", "quarantine", *tables), ["asset_id", "run_key"]):
        found, expected = counts[hash((asset_id, run_key))]
        report.violations.append(
            f"{tables[0]}: asset {asset_id} has {found} rows of {run_key}, its ledger row says {expected}"
        )
    if wrong.count > NAMED:
        report.violations.append(f"{tables[0]}: and {wrong.count - NAMED} more assets whose counts differ")


def _differing(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    """(key, sum of want, sum of have) where the sums differ, int64 (N, 3). want, have: (key, number), int64 (N, 2)."""
    keys, place = np.unique(np.concatenate([want[:, 0], have[:, 0]]), return_inverse=True)
    sums = np.zeros((len(keys), 2), np.int64)
    np.add.at(sums[:, 0], place[: len(want)], want[:, 1])
    np.add.at(sums[:, 1], place[len(want) :], have[:, 1])
    return np.column_stack([keys, sums])[sums[:, 0] != sums[:, 1]]


def _verify_pictures(lake: Lake, report: LakeReport) -> None:
    """What the recipes that settled the frames say is stored, is there."""
    for recipe, text in _recipes(lake).items():
        settings = yaml.safe_load(text) or {}
        if not settings.get("jpeg", {}).get("store", True):
            continue
        missing = lake.count("frames", f"jpeg IS NULL AND starts_with(run_key, {literal(recipe + '.')})")
        if missing:
            report.violations.append(f"frames: {missing} rows have no jpeg, which their recipe {recipe} stores")


def _verify_values(lake: Lake, report: LakeReport) -> None:
    """Every frame of an asset that an op is done with has its values, or a reason why it can't have them. Values of other
    assets are pending: the op may have left the recipe, and keeps its columns."""
    keys = {title: key for title, key in op_keys(lake).items() if key["unit"] == "frame"}
    filled = {column: title for title, key in keys.items() for column in key["columns"] or []}
    done = covered(lake, [key["key"] for key in keys.values()])
    schema = lake.schema("frames")
    for column, title in filled.items():
        if column not in schema.names and len(claimed := done[keys[title]["key"]]):
            report.violations.append(
                f"frames: column {column} is gone, and op {title} is done with {len(claimed)} assets"
            )
    for column in schema:
        by, spec = filled.get(column.name), facts_of(column).get("spec")
        if by is None and spec is None:
            continue
        claimed = done[keys[by]["key"]] if by is not None else AssetSet()
        missing = pending = 0
        for batch in lake.scan("frames", ["asset_no"], wants_value(schema, column.name)):
            inside = int(claimed.contains(asset_numbers(batch["asset_no"])).sum())
            missing, pending = missing + inside, pending + batch.num_rows - inside
        what = f"vector in {column.name}" if spec else column.name
        if missing:
            sentence = f"{missing} rows have no {what}, though op {by} is done with them: run vfm retry --op {by}"
            report.violations.append(f"frames: {sentence}")
        if pending:
            how = f"vfm embed --model {spec}" if spec else f"vfm process with op {by} in the recipe"
            report.pending.append(f"frames: {pending} rows have no {what} yet: run {how}")


def _verify_selections(lake: Lake, report: LakeReport) -> None:
    """A selection's rows are frames: of the version that it pins, where it does, else of the newest."""
    # Names are of letters, digits, - and _ (`pipelines.curation.selections.check_name`).
    names = _values(lake, "selections", "selection")
    tags = lake.table("frames").tags.list() if names else {}
    for name in names:
        generations = {
            int(m[1]): t["version"] for tag, t in tags.items() if (m := re.fullmatch(rf"{name}\.g(\d+)", tag))
        }
        version = generations[max(generations)] if generations else None
        frames = _keys(lake, "frames", ("frame_id",), version)
        if strays := _strays(lake, "selections", "frame_id", frames, equals("selection", name)):
            report.violations.append(f"selections: {strays} rows of {name} name a frame that does not exist")


def _recipes(lake: Lake) -> dict[str, str]:
    """YAML of each recipe that settled something, where a run that ended has written it down."""
    used = _values(lake, "ledger", "recipe")
    return {recipe: text for recipe, text in recipes_of_runs(lake) if recipe in used}


def _keys(
    lake: Lake, table: str, columns: Iterable[str], version: int | None = None, where: str | None = None
) -> Partitioned:
    """Hashes of the keys of a table, those with a null left out where `where` says so."""
    keys, dataset = Partitioned(1), lake.dataset(table, version)
    if dataset is not None:
        names = [c for c in columns if c in dataset.schema.names]
        for batch in dataset.scanner(columns=names, filter=where).to_batches():
            keys.add(row_hashes(*batch.columns))
    return keys


def _values(lake: Lake, table: str, column: str) -> list[str]:
    """The different values of a column that has few, sorted."""
    return sorted({value for batch in lake.scan(table, [column]) for value in pc.unique(batch[column]).to_pylist()})


def _pairs(batch: pa.RecordBatch) -> np.ndarray:
    return row_hashes(batch["asset_id"], batch["run_key"])


def _numbers(column: pa.Array) -> np.ndarray:
    """int64 (N,); 0 for nulls."""
    return column.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _strays(lake: Lake, table: str, column: str, known: Partitioned, where: str | None = None) -> int:
    """Rows whose `column` is not null and not among the known keys."""
    there = f"{column} IS NOT NULL" + (f" AND {where}" if where else "")
    return sum(int((~np.isin(part, k)).sum()) for part, k in zip(_keys(lake, table, (column,), None, there), known))


class _Found:
    """Keys that something is wrong with: how many, and the first of them."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[int]()

    def add(self, keys: np.ndarray) -> None:
        """Notes keys, int64, of any shape."""
        self.count += keys.size
        self.first += keys.flatten()[: NAMED - len(self.first)].tolist()

    def names(self, lake: Lake, tables: Iterable[str], columns: list[str]) -> list[tuple[str, ...]]:
        """What the first are the hashes of, as found in tables."""
        return sorted(set().union(*(rows_hashed(lake, t, columns, np.array(self.first, np.int64)) for t in tables)))
