"""Lakes of older formats, brought to the present one in place, without decoding or computing anything again.

Each step looks at what is there and does what is missing, so that a migration that is killed goes on. What an old lake can't
say, such as the digest of a detector, is taken over as it is, and marked as adopted in `keys`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.arrow import row_hashes
from pipelines.lake.coverage import AssetSet, asset_numbers, cover, settled_assets
from pipelines.lake.journal import FOLDER
from pipelines.lake.keys import op_keys, record_keys
from pipelines.lake.ledger import recipes_of_runs
from pipelines.lake.numbers import number_assets
from pipelines.lake.schema import FORMAT_VERSION
from pipelines.lake.sql import equals, literal
from pipelines.process.recipe import Recipe, entry_name
from vfm_ops.op_registry import find_op

COUNT = pa.field("detections_count", pa.int32(), metadata={"op": "detect", "reads": "pictures"})
FRAMES_AT_ONCE = 1 << 22  # whose boxes are counted in one scan of all boxes: some 32 bytes each


def migrate(lake: Lake, recipe: Recipe) -> bool:
    """Brings a lake to the present format, as far as it is not there yet. Returns whether there was anything to do.

    recipe: of the run that asks for it, since a run of format 1 that was killed did not write its own down. The caller holds
    the lease.
    """
    numbered = number_assets(lake) > 0
    if lake.format >= FORMAT_VERSION:
        return numbered
    for old_hash, told in _format_1_recipes(lake, recipe).items():
        where = f"{equals('recipe', old_hash)} AND op IS NULL"
        for entry in told.ops:
            if entry_name(entry) == "detect":
                _adopt_boxes(lake, where, entry)
            elif entry_name(entry) == "track":
                _adopt_tracks(lake, where, entry)
        for table in ("ledger", "quarantine"):
            lake.update(table, {"recipe": literal(told.hash)}, where)
    for table, op in (("detections", "detect"), ("tracks", "track")):
        lake.update(table, {"op": literal(op)}, "op IS NULL")
    for name in lake.list_files(FOLDER):  # of videos that are begun anew, since their keys are others now
        lake.remove_file(f"{FOLDER}/{name}")
    lake.put_format(FORMAT_VERSION)
    return True


def adopted_row(name: str, given: Any) -> dict[str, Any]:
    """Row of `keys` for values of an op of which no more than its settings is known. given: those, or the main one."""
    op = find_op(name)
    assert isinstance(op, type)
    values = dict(given) if isinstance(given, dict) else {str(op.main): given}
    known = {name: value for name, value in values.items() if name in op.Settings.model_fields}
    settings = op.Settings(**known).given(without=op.unkeyed)
    table = op.table
    return {
        "op": name,
        "key": "adopted-"
        + hashlib.blake2b(json.dumps([name, settings], sort_keys=True).encode(), digest_size=6).hexdigest(),
        "name": name,
        "version": op.version,
        "settings": json.dumps(settings, sort_keys=True),
        "digest": None,
        "unit": op.unit,
        "table": table.name if table else None,
        "columns": [COUNT.name] if op.unit == "frame" else [],
        "reads": [],
        "adopted": True,
        "recorded_at": datetime.now(UTC),
    }


def _format_1_recipes(lake: Lake, recipe: Recipe) -> dict[str, Recipe]:
    """Recipes of format 1 that settled something, by the hash that they had then."""
    used: set[str] = set()
    for table in ("ledger", "quarantine"):
        for batch in lake.scan(table, ["recipe"], "op IS NULL"):
            used.update(pc.unique(batch["recipe"]).to_pylist())
    texts = dict(recipes_of_runs(lake))
    found = {old: Recipe.model_validate(yaml.safe_load(texts[old])) for old in used & texts.keys()}
    if (own := format_1_hash(recipe)) in used - texts.keys():
        found[own] = recipe
    return {old: told for old, told in found.items() if told.hash != old}


def format_1_hash(recipe: Recipe) -> str:
    """The hash that a recipe had in format 1: over all of its sections, but for embeddings."""
    given = {entry_name(e): next(iter(e.values())) if isinstance(e, dict) else {} for e in recipe.ops}
    whole = recipe.model_dump(mode="json", include={"sampling", "shots", "jpeg"})
    motion = whole["shots"].pop("min_motion")
    bounds = find_op("quality").Settings(**given.get("quality", {})).model_dump(mode="json")
    whole["quality"] = {"measure": "quality" in given, **bounds, "min_motion": motion}
    whole["phash"] = "phash" in given
    own = {"detect": ("prompts", "model", "threshold", "nms_iou")}
    own["track"] = ("model", "detect_every", "max_objects", "chunk_frames")
    for name, fields in own.items():
        whole[name] = _dumped(name, given[name], fields) if name in given else None
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=6).hexdigest()


def _dumped(name: str, given: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    op = find_op(name)
    values = given if isinstance(given, dict) else {str(op.main): given}
    plain = op.Settings(**{k: v for k, v in values.items() if k != "as"}).model_dump(mode="json")
    return {field: plain[field] for field in fields}


def _adopt_boxes(lake: Lake, where: str, entry: Any) -> None:
    """Says of each frame how many boxes it has, and that its asset is covered."""
    row = adopted_row("detect", entry["detect"])
    if op_keys(lake).get("detect", {}).get("key") not in (None, row["key"]):
        return  # of another recipe, which came later: these rows are replaced when they are asked for
    assets = settled_assets(lake, where)
    for table in ("frames", "dropped"):
        lake.ensure(table, [COUNT])
    for part in _uncounted(lake, assets):
        counts = _boxes_of(lake, np.concatenate([hashes for _, _, hashes in part]))
        for fragment, row_ids, _ in part:
            own, counts = np.split(counts, [len(row_ids)])
            columns = pa.table({"_rowid": pa.array(row_ids, pa.uint64()), COUNT.name: pa.array(own, pa.int32())})
            lake.commit_columns("frames", lake.write_columns("frames", fragment, columns))
    record_keys(lake, [row])
    cover(lake, {row["key"]: "detect"}, assets, "migration")


Uncounted = list[tuple[int, np.ndarray, np.ndarray]]


def _uncounted(lake: Lake, assets: AssetSet) -> Iterator[Uncounted]:
    """Frames of some assets whose boxes were not counted yet, about FRAMES_AT_ONCE together: of each fragment its id, row ids
    (uint64), and hashes of the frame ids (int64)."""
    part: Uncounted = []
    for fragment in [f.fragment_id for f in lake.table("frames").get_fragments()]:
        row_ids, hashes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for batch in lake.scan_fragment("frames", fragment, ["frame_id", "asset_no"], 65536, f"{COUNT.name} IS NULL"):
            kept = batch.filter(pa.array(assets.contains(asset_numbers(batch["asset_no"]))))
            row_ids.append(kept["_rowid"].to_numpy())
            hashes.append(row_hashes(kept["frame_id"]))
        rows = np.concatenate(row_ids)
        if len(rows):
            part.append((fragment, rows, np.concatenate(hashes)))
        if sum(len(rows) for _, rows, _ in part) >= FRAMES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _boxes_of(lake: Lake, hashes: np.ndarray) -> np.ndarray:
    """How many boxes each of some frames has, int64 (N,), by one scan of all boxes. hashes: of frame ids, int64 (N,)."""
    known, place = np.unique(hashes, return_inverse=True)
    counts = np.zeros(len(known), np.int64)
    for batch in lake.scan("detections", ["frame_id"]):
        found = row_hashes(batch["frame_id"])
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        np.add.at(counts, at[known[at] == found], 1)
    return counts[place]


def _adopt_tracks(lake: Lake, where: str, entry: Any) -> None:
    """Gives each video that was tracked a ledger row of the op."""
    row = adopted_row("track", entry["track"])
    if op_keys(lake).get("track", {}).get("key") not in (None, row["key"]):
        return
    done = settled_assets(lake, f"op = 'track' AND {equals('recipe', row['key'])}")
    counts: Counter[str] = Counter()
    for batch in lake.scan("tracks", ["asset_id"]):
        counts.update(batch["asset_id"].to_pylist())
    rows: list[dict[str, Any]] = []
    for batch in lake.scan("ledger", None, f"{where} AND probe.codec IS NOT NULL"):
        fresh = ~done.contains(asset_numbers(batch["asset_no"]))
        for old in batch.filter(pa.array(fresh)).to_pylist():
            same = {k: old[k] for k in ("asset_id", "run_key", "attempt", "etag", "run_id", "finished_at", "asset_no")}
            rows.append({**same, "recipe": row["key"], "op": "track", "rows": counts[old["asset_id"]]})
    record_keys(lake, [row])
    lake.append("ledger", pa.Table.from_pylist(rows, SCHEMAS["ledger"]))
