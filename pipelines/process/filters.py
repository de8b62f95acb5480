"""Filters over frames that a lake already holds: what a new or a tighter one drops, and what a looser one brings back. Another
sampling is one, too: the frames that it does not want are dropped, and come back with one that does.

A frame that is dropped moves, whole, from `frames` to `dropped`, with the reason; it moves back when no filter of the recipe
drops it any more. Added first, taken away second: a kill in between leaves a frame in both, and `settle_moves` keeps the one in
`frames`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import Lake
from pipelines.lake.coverage import AssetSet, asset_numbers, assets_in, cover, uncover
from pipelines.lake.keys import op_keys, record_keys
from pipelines.lake.ledger import other_samplings
from pipelines.lake.schema import DROPPED
from pipelines.lake.sql import equals, literal, one_of
from pipelines.process.backfill import run_on_fragments
from pipelines.process.ops import PlannedOp, decided_by
from pipelines.process.recipe import Recipe

SAMPLING = "sampling"  # in `dropped` and `keys`, where an op's name stands else
ROWS = 256  # frames, with their pictures, in one move


def settle_moves(lake: Lake) -> int:
    """After a kill: frames that are in `frames` and in `dropped` leave the latter. Returns how many."""
    if not lake.count("dropped"):
        return 0
    ids = pa.chunked_array([b["frame_id"] for b in lake.scan("dropped", ["frame_id"])], pa.string())
    twice: list[str] = []
    for batch in lake.scan("frames", ["frame_id"]):
        twice += batch["frame_id"].filter(pc.is_in(batch["frame_id"], value_set=ids.combine_chunks())).to_pylist()
    return lake.delete("dropped", "frame_id", twice)


def reconsider(lake: Lake, planned: list[PlannedOp], run_id: str) -> int:
    """Judges frames anew that another setting of a filter dropped, or one that the recipe has no more. Returns how many came
    back.

    A filter that judges by what it measured looks at that; frames of any other come back, and it sees them again.
    """
    if not lake.count("dropped"):
        return 0
    now = decided_by(planned)
    others = [f"NOT ({equals('op', title)} AND {equals('op_key', key)})" for title, key in now.items()]
    stale = " AND ".join([f"op <> {literal(SAMPLING)}", *others])
    if not lake.count("dropped", stale):
        return 0
    back = 0
    judges = {one.title: one for one in planned if one.judges_columns}
    for title in sorted(set(lake.read("dropped", ["op"], stale)["op"].to_pylist())):
        only = f"{equals('op', title)} AND {stale}"
        for ids, reasons, numbers in _judged(lake, "dropped", judges.get(title), only):
            kept = [i for i, reason in zip(ids, reasons) if reason is None]
            if kept:
                uncover(lake, AssetSet(numbers[[reason is None for reason in reasons]]), run_id)
                _move(lake, "dropped", "frames", kept, {})
                back += len(kept)
            by_reason: dict[str, list[str]] = {}
            for frame_id, reason in zip(ids, reasons):
                if reason is not None:
                    by_reason.setdefault(reason, []).append(frame_id)
            for reason, same in by_reason.items():
                judged = {"reason": literal(reason), "op_key": literal(now[title])}
                lake.update("dropped", judged, one_of("frame_id", same))
    return back


def apply_filter(
    lake: Lake,
    recipe: Recipe,
    planned: PlannedOp,
    wanted: AssetSet,
    run_id: str,
    seconds: Counter[str] | None = None,
) -> int:
    """Drops frames that a filter has not judged yet, where it does. Returns how many.

    wanted: assets with frames that the filter has not covered. seconds: of each stage, to be added to.
    """
    if not len(wanted):
        return 0
    gone = 0
    for drops in _drops(lake, recipe, planned, wanted, seconds):
        _move(lake, "frames", "dropped", list(drops), drops, (planned.title, planned.keep_key))
        gone += len(drops)
    cover(lake, {planned.keep_key: planned.title}, wanted, run_id)
    return gone


def _drops(
    lake: Lake, recipe: Recipe, planned: PlannedOp, wanted: AssetSet, seconds: Counter[str] | None
) -> Iterator[dict[str, str]]:
    """Frames to drop, with the reason, part by part. A picture that the filter fails on stays."""
    if planned.judges_columns:
        for ids, reasons, numbers in _judged(lake, "frames", planned, None):
            new = wanted.contains(numbers)
            yield {i: reason for i, reason, n in zip(ids, reasons, new) if reason is not None and n}
        return
    pending = "frame_id IS NOT NULL" if planned.op.needs is None else "jpeg IS NOT NULL"
    for row, _ in run_on_fragments(lake, recipe, planned, pending, wanted, seconds):
        yield dict(row["drops"])


def apply_sampling(lake: Lake, recipe: Recipe, run_id: str, again: bool) -> int:
    """Drops frames of videos that a recipe's sampling does not want, and brings back those that it does. Returns how many.

    again: also where the lake is of this sampling already, as after frames came that were not wanted before.
    """
    if not again and op_keys(lake).get(SAMPLING, {}).get("key") == recipe.hash:
        return 0
    mine = f"op IS NULL AND {equals('recipe', recipe.hash)}"
    sampled_twice, moved = assets_in(lake, "ledger", other_samplings(recipe.hash)), 0
    if len(sampled_twice):
        for batch in lake.scan("ledger", ["asset_id", "asset_no", "wanted"], mine, batch_size=256):
            chosen = batch.filter(pa.array(sampled_twice.contains(asset_numbers(batch["asset_no"]))))
            wanted = {r["asset_id"]: r for r in chosen.to_pylist() if r["wanted"] is not None}
            moved += _resample(lake, recipe, wanted, run_id) if wanted else 0
    row = {"op": SAMPLING, "key": recipe.hash, "name": SAMPLING, "settings": "{}", "recorded_at": datetime.now(UTC)}
    record_keys(lake, [row])
    return moved


def _resample(lake: Lake, recipe: Recipe, wanted: dict[str, dict[str, Any]], run_id: str) -> int:
    """wanted: by asset, its row of the ledger."""
    frames = {asset_id: set(row["wanted"]) for asset_id, row in wanted.items()}
    own = one_of("asset_id", wanted)
    columns = ["frame_id", "asset_id", "frame_index"]
    there = lake.read("frames", columns, own).to_pylist()
    gone = lake.read("dropped", columns, f"{equals('op', SAMPLING)} AND {own}").to_pylist()
    hidden = [r["frame_id"] for r in there if r["frame_index"] not in frames[r["asset_id"]]]
    back = [r for r in gone if r["frame_index"] in frames[r["asset_id"]]]
    reason = "not of this sampling"
    _move(lake, "frames", "dropped", hidden, dict.fromkeys(hidden, reason), (SAMPLING, recipe.hash))
    if back:
        uncover(lake, AssetSet([wanted[i]["asset_no"] for i in {r["asset_id"] for r in back}]), run_id)
        _move(lake, "dropped", "frames", [r["frame_id"] for r in back], {})
    return len(hidden) + len(back)


Judged = tuple[list[str], list[str | None], np.ndarray]


def _judged(lake: Lake, table: str, planned: PlannedOp | None, where: str | None) -> Iterator[Judged]:
    """Frame ids, reasons to drop them, and asset numbers, of a table's rows, by the columns that the filter has filled."""
    names = [f.name for f in planned.fields] if planned else []
    there = set(names) <= set(lake.schema(table).names)
    for batch in lake.scan(table, ["frame_id", "asset_no", *(names if there else [])], where, batch_size=8192):
        ids = batch["frame_id"].to_pylist()
        reasons: list[str | None] = [None] * len(ids)
        if planned is not None and there and ids:
            own = list(planned.op.adds) or names
            reasons = planned.op.judge({own_name: batch[name].to_pylist() for own_name, name in zip(own, names)})
        yield ids, reasons, asset_numbers(batch["asset_no"])


def _move(
    lake: Lake, source: str, target: str, ids: list[str], reasons: dict[str, str], by: tuple[str, str] | None = None
) -> None:
    """Frames from one table to the other, whole. reasons, by: why, and by which op and key, for those that go to `dropped`."""
    own = {f.name for f in DROPPED}
    for start in range(0, len(ids), ROWS):
        some = ids[start : start + ROWS]
        columns = [n for n in lake.schema(source).names if n in lake.schema(target).names and n not in own]
        rows = lake.read(source, columns, one_of("frame_id", some))
        if by is not None:
            why = [reasons[i] for i in rows["frame_id"].to_pylist()]
            for field, values in zip(DROPPED, (why, [by[0]] * len(why), [by[1]] * len(why))):
                rows = rows.append_column(field, pa.array(values, pa.string()))
        lake.commit(target, lake.write_fragments(target, rows))
        lake.delete(source, "frame_id", some)
