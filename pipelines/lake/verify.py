"""The proof that a lake is whole: keys are unique, references hold, every asset is settled once, counts agree, and what ops are
done with, as the lake's coverage says, has their values. What no op has claimed yet is pending, and no violation.

It reads values, never files or fragments, and streams: memory is that of the keys, 8 bytes each.
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
from pipelines.lake.coverage import AssetSet, asset_numbers, covered
from pipelines.lake.keys import op_keys
from pipelines.lake.lake import Lake
from pipelines.lake.ledger import of_decoding, recipes_of_runs
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
        strays = _strays(lake, table, column, _hashes(lake, other, (target,)))
        if strays:
            report.violations.append(f"{table}: {strays} rows refer to a {column} that {other} does not have")
    _verify_settled(lake, report)
    _verify_pictures(lake, report)
    _verify_values(lake, report)
    _verify_selections(lake, report)
    report.violations += annotation_rows.violations(lake)
    return report


def _verify_keys(lake: Lake, table: str, key: tuple[str, ...], report: LakeReport) -> None:
    hashes = _hashes(lake, table, key)
    twice = len(hashes) - len(np.unique(hashes))
    if twice:
        report.violations.append(f"{table}: {' and '.join(key)} is not unique: {twice} rows are doubled")


def _verify_settled(lake: Lake, report: LakeReport) -> None:
    assets = lake.read("assets", ["asset_id"])
    ledger = lake.read("ledger", ["asset_id", "run_key", "shots", "frames"], of_decoding(lake))
    quarantine = lake.read("quarantine", ["asset_id", "run_key", "salvaged_frames"], of_decoding(lake, "quarantine"))
    settled = pa.concat_arrays(
        [*ledger["asset_id"].chunks, *quarantine["asset_id"].chunks] or [pa.array([], pa.string())]
    )
    both = pc.is_in(ledger["run_key"], value_set=quarantine["run_key"])
    both = pc.and_(both, pc.is_in(_pairs(ledger), value_set=_pairs(quarantine)))
    _note(report, ledger["asset_id"].filter(both), "in the ledger and in the quarantine")
    known = pc.is_in(assets["asset_id"], value_set=settled)
    _note(report, assets["asset_id"].filter(pc.invert(known)), "pending (neither in the ledger nor in the quarantine)")
    ghosts = pc.invert(pc.is_in(settled, value_set=assets["asset_id"]))
    _note(report, settled.filter(ghosts), "settled but not among the assets")
    expected = {(r["asset_id"], r["run_key"]): r for r in ledger.to_pylist()}
    salvaged = {(r["asset_id"], r["run_key"]): r["salvaged_frames"] for r in quarantine.to_pylist()}
    shots = _rows_of(lake, ("shots",))  # a salvaged asset may own shots of its good part
    _verify_counts(
        "shots",
        shots,
        {k: r["shots"] or 0 for k, r in expected.items()} | {k: shots.get(k, 0) for k in salvaged},
        report,
    )
    frames = {k: r["frames"] or 0 for k, r in expected.items()} | {k: n or 0 for k, n in salvaged.items()}
    _verify_counts("frames", _rows_of(lake, ("frames", "dropped")), frames, report)
    twice = np.intersect1d(_hashes(lake, "frames", ("frame_id",)), _hashes(lake, "dropped", ("frame_id",)))
    if len(twice):
        report.violations.append(f"{len(twice)} frames are in frames and in dropped")
    _verify_op_tables(lake, report)


def _pairs(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(rows["asset_id"], rows["run_key"], "/")


def _verify_op_tables(lake: Lake, report: LakeReport) -> None:
    """Rows of ops' own tables: as many as each frame, or the ledger row of each video, says."""
    for title, key in op_keys(lake).items():
        table = key["table"]
        if not table or lake.dataset(table) is None:
            continue
        if key["unit"] == "frame":
            _verify_rows(lake, title, key, report)
            continue
        found = _rows_of(lake, (table,), equals("op", title))
        rows = lake.read("ledger", ["asset_id", "run_key", "rows"], equals("op", title)).to_pylist()
        _verify_counts(table, found, {(r["asset_id"], r["run_key"]): r["rows"] or 0 for r in rows}, report)


def _verify_rows(lake: Lake, title: str, key: dict[str, Any], report: LakeReport) -> None:
    """Rows of a frame op's table: as many of each frame as its count column says."""
    table, (column,) = key["table"], key["columns"]
    said: list[np.ndarray] = [np.empty(0, np.int64)]
    for source in ("frames", "dropped"):
        for batch in lake.scan(source, ["frame_id", column], f"{column} > 0"):
            said.append(np.repeat(_hashed([batch["frame_id"]]), batch[column].to_numpy()))
    there = [_hashed([b["frame_id"]]) for b in lake.scan(table, ["frame_id"], equals("op", title))]
    want, have = np.sort(np.concatenate(said)), np.sort(np.concatenate([*there, said[0]]))
    if not np.array_equal(want, have):
        report.violations.append(
            f"{table}: rows of op {title} are not those that {column} counts: there are {len(have)}, of {len(want)}"
        )


def _rows_of(lake: Lake, tables: tuple[str, ...], where: str | None = None) -> dict[tuple[str, str], int]:
    """How many rows each asset and run key has in tables."""
    found: dict[tuple[str, str], int] = {}
    for table in tables:
        for batch in lake.scan(table, ["asset_id", "run_key"], where):
            grouped = pa.Table.from_batches([batch]).group_by(["asset_id", "run_key"]).aggregate([([], "count_all")])
            for row in grouped.to_pylist():
                key = (row["asset_id"], row["run_key"])
                found[key] = found.get(key, 0) + row["count_all"]
    return found


def _verify_counts(
    table: str, found: dict[tuple[str, str], int], expected: dict[tuple[str, str], int], report: LakeReport
) -> None:
    wrong = [key for key in found.keys() | expected.keys() if found.get(key, 0) != expected.get(key, 0)]
    for asset_id, run_key in wrong[:5]:
        key = (asset_id, run_key)
        report.violations.append(
            f"{table}: asset {asset_id} has {found.get(key, 0)} rows of {run_key}, its ledger row says {expected.get(key, 0)}"
        )
    if len(wrong) > 5:
        report.violations.append(f"{table}: and {len(wrong) - 5} more assets whose counts differ")


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
    names = pc.unique(lake.read("selections", ["selection"])["selection"]).to_pylist()
    tags = lake.table("frames").tags.list() if names else {}
    for name in names:
        generations = {
            int(m[1]): t["version"] for tag, t in tags.items() if (m := re.fullmatch(rf"{name}\.g(\d+)", tag))
        }
        version = generations[max(generations)] if generations else None
        frames = _hashes(lake, "frames", ("frame_id",), version)
        if strays := _strays(lake, "selections", "frame_id", frames, equals("selection", name)):
            report.violations.append(f"selections: {strays} rows of {name} name a frame that does not exist")


def _recipes(lake: Lake) -> dict[str, str]:
    """YAML of each recipe that settled something, where a run that ended has written it down."""
    used = pc.unique(lake.read("ledger", ["recipe"])["recipe"]).to_pylist()
    return {recipe: text for recipe, text in recipes_of_runs(lake) if recipe in used}


def _hashes(lake: Lake, table: str, columns: Iterable[str], version: int | None = None) -> np.ndarray:
    """Python's hashes of the keys of a table, int64 (N,)."""
    dataset = lake.dataset(table, version)
    if dataset is None:
        return np.empty(0, np.int64)
    names = [c for c in columns if c in dataset.schema.names]
    parts = [_hashed(batch.columns) for batch in dataset.scanner(columns=names).to_batches()]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _hashed(columns: list[pa.Array]) -> np.ndarray:
    """Python's hashes of rows, int64 (N,)."""
    return np.fromiter(map(hash, zip(*(c.to_pylist() for c in columns))), np.int64, len(columns[0]))


def _strays(lake: Lake, table: str, column: str, known: np.ndarray, where: str | None = None) -> int:
    """Rows whose `column` is not null and not among the known keys."""
    strays = 0
    for batch in lake.scan(table, [column], where):
        values = [(v,) for v in batch[column].drop_null().to_pylist()]
        strays += int((~np.isin(np.fromiter(map(hash, values), np.int64, len(values)), known)).sum())
    return strays


def _note(report: LakeReport, ids: pa.Array | pa.ChunkedArray, what: str) -> None:
    if len(ids):
        report.violations.append(f"{len(ids)} assets are {what}, such as {ids[0].as_py()}")
