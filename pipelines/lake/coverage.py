"""Which assets an op on frames has covered: bitmaps over `asset_no`, one row a key, segment of numbers and commit.

The state of a key is all of its rows together, so that a commit that is replayed is harmless; a row without a key takes assets
back, whose frames are made anew, from what the rows before it say. A fold puts the state in the place of the rows, at the end
of a run and in maintenance. Nothing is inferred from files, fragments or nulls, and what is held grows with a bit an asset and
key.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake.lake import Lake, commit, lance
from pipelines.lake.schema import SCHEMAS
from pipelines.lake.sql import one_of

SEGMENT = 1 << 16  # asset numbers in a bitmap of 8 KB
FOLD_SURPLUS = 256  # rows that a run leaves beyond those of the folded state: a fold rewrites the table


class AssetSet:
    """A set of asset numbers. Numbers below zero, which stand for none, are never in it."""

    def __init__(self, numbers: Iterable[int] | np.ndarray = ()) -> None:
        self.segments: dict[int, np.ndarray] = {}  # uint8 (SEGMENT / 8,), the lowest bit first
        self.add(np.asarray(list(numbers) if not isinstance(numbers, np.ndarray) else numbers, np.int64))

    def __len__(self) -> int:
        return sum(int(np.unpackbits(bits).sum()) for bits in self.segments.values())

    def add(self, numbers: np.ndarray) -> None:
        """numbers: int64 (N,)."""
        for segment, inside in _by_segment(numbers):
            flags = np.zeros(SEGMENT, bool)
            flags[inside] = True
            self.merge(segment, np.packbits(flags, bitorder="little"))

    def merge(self, segment: int, bits: np.ndarray) -> None:
        """Adds a whole bitmap."""
        there = self.segments.get(segment)
        self.segments[segment] = bits.copy() if there is None else there | bits

    def remove(self, segment: int, bits: np.ndarray) -> None:
        """Takes a whole bitmap away."""
        if segment in self.segments:
            self.segments[segment] &= ~bits

    def without(self, other: AssetSet) -> AssetSet:
        """What is in this one and not in the other."""
        left = AssetSet()
        for segment, bits in self.segments.items():
            rest = bits & ~other.segments[segment] if segment in other.segments else bits
            if rest.any():
                left.segments[segment] = rest
        return left

    def __or__(self, other: AssetSet) -> AssetSet:
        both = AssetSet()
        for part in (self, other):
            for segment, bits in part.segments.items():
                both.merge(segment, bits)
        return both

    def contains(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these are in it, bool (N,). numbers: int64 (N,)."""
        found = np.zeros(len(numbers), bool)
        for segment, inside, rows in _segment_rows(numbers):
            if (bits := self.segments.get(segment)) is not None:
                found[rows] = (bits[inside >> 3] >> (inside & 7).astype(np.uint8)) & 1
        return found

    def numbers(self) -> np.ndarray:
        """All of them, ascending, int64 (N,)."""
        parts = [
            segment * SEGMENT + np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            for segment, bits in sorted(self.segments.items())
        ]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def asset_numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column `asset_no` as int64 (N,); -1 where it is null."""
    return np.asarray(column.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def covered(lake: Lake, keys: Collection[str]) -> dict[str, AssetSet]:
    """Of each key, the assets that are done under it. One scan of the table, however many keys there are."""
    rows = lake.scan("coverage", ["key", "segment", "assets"], one_of("key", {"", *keys}), scan_in_order=True)
    state = _state(rows)
    return {key: state.get(key) or AssetSet() for key in keys}


def cover(lake: Lake, keys: dict[str, str], assets: AssetSet, run_id: str) -> None:
    """Says that assets are done under keys. keys: of each key, the op's name in the recipe."""
    if rows := _rows(dict.fromkeys(keys, assets), keys, run_id):
        lake.append("coverage", pa.Table.from_pylist(rows, SCHEMAS["coverage"]))


def uncover(lake: Lake, assets: AssetSet, run_id: str = "") -> None:
    """Takes assets back from every key, before their frames are replaced: a kill in between must not leave them covered."""
    cover(lake, {"": ""}, assets, run_id)


def fold_coverage(lake: Lake, run_id: str = "", surplus: int = 1) -> int:
    """Replaces all rows by the state that they add up to: one for each key and segment. Returns how many rows went.

    One commit: a reader sees the old rows or the new ones, and a kill leaves one or the other. Nothing is done while the table
    has less than `surplus` rows more than its state. The caller holds the lease, since a row that takes assets back must not
    be committed while the rows before it are folded.
    """
    dataset = lake.dataset("coverage")
    if dataset is None or _surplus(dataset) < surplus:
        return 0

    def fold(dataset: Any) -> int:
        ops: dict[str, str] = {}
        rows = _rows(_state(dataset.scanner(scan_in_order=True).to_batches(), ops), ops, run_id)
        table = pa.Table.from_pylist(rows, SCHEMAS["coverage"])
        written = lake.write_fragments("coverage", table) if rows else []
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=[f.fragment_id for f in dataset.get_fragments()],
            new_fragments=[lance.FragmentMetadata.from_json(f) for f in written],
            updated_fragments=[],
            fields_modified=[],
        )
        commit(dataset, operation)
        return int(dataset.count_rows()) - len(rows)

    return lake.change("coverage", "fold", fold) or 0


def _surplus(dataset: Any) -> int:
    """Rows that a fold would take away, at least: the state can't have more than one for each key and segment."""
    pairs: set[tuple[str, int]] = set()
    rows = dataset.count_rows()
    for batch in dataset.scanner(columns=["key", "segment"], filter="key <> ''").to_batches() if rows else ():
        pairs.update(zip(batch["key"].to_pylist(), batch["segment"].to_pylist()))
    return int(rows) - len(pairs)


def _state(batches: Iterable[pa.RecordBatch], ops: dict[str, str] | None = None) -> dict[str, AssetSet]:
    """What rows, in the order of their commits, add up to, by key. ops: gets the op of each key."""
    state: dict[str, AssetSet] = {}
    for batch in batches:
        for row in batch.to_pylist():
            bits = np.frombuffer(zlib.decompress(row["assets"]), np.uint8)
            if row["key"]:
                state.setdefault(row["key"], AssetSet()).merge(row["segment"], bits)
                if ops is not None:
                    ops[row["key"]] = row["op"]
            else:
                for assets in state.values():
                    assets.remove(row["segment"], bits)
    return state


def _rows(state: dict[str, AssetSet], ops: dict[str, str], run_id: str) -> list[dict[str, Any]]:
    """Rows that say what is covered. ops: of each key, the op's name in the recipe."""
    now = datetime.now(UTC)
    return [
        {
            "key": key,
            "op": ops[key],
            "segment": segment,
            "assets": zlib.compress(bits.tobytes(), 1),
            "run_id": run_id,
            "finished_at": now,
        }
        for key, assets in state.items()
        for segment, bits in assets.segments.items()
        if bits.any()
    ]


def assets_in(lake: Lake, table: str, where: str | None = None) -> AssetSet:
    """Numbers of the assets with rows in a table that satisfy `where`."""
    found = AssetSet()
    for batch in lake.scan(table, ["asset_no"], where):
        found.add(asset_numbers(batch["asset_no"]))
    return found


def settled_assets(lake: Lake, where: str) -> AssetSet:
    """Numbers of the assets with a row in the ledger or in the quarantine that satisfies `where`."""
    return assets_in(lake, "ledger", where) | assets_in(lake, "quarantine", where)


def _by_segment(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for segment, inside, _ in _segment_rows(numbers):
        yield segment, inside


def _segment_rows(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(segment, numbers within it, rows that they are of)."""
    rows = np.flatnonzero(numbers >= 0)
    if not len(rows):
        return
    order = rows[np.argsort(numbers[rows], kind="stable")]
    values = numbers[order]
    for part in np.split(np.arange(len(order)), np.flatnonzero(np.diff(values // SEGMENT)) + 1):
        segment = int(values[part[0]] // SEGMENT)
        yield segment, values[part] - segment * SEGMENT, order[part]
