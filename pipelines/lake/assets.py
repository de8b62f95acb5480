"""Registering assets: which of a listed batch are new, which changed, and how either reaches the table.

A lake of 100 million assets is compared by 24 bytes each, in sorted arrays; no string of an existing asset is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.lake.coverage import asset_numbers
from pipelines.lake.keys import derived_tables
from pipelines.lake.lake import Lake


@dataclass(frozen=True)
class _Run:
    """Sorted by `keys` (first 64 bits of the ids); `rest` the other 64, `etags` their hashes."""

    keys: np.ndarray
    rest: np.ndarray
    etags: np.ndarray

    def find(self, keys: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return (self.keys[at] == keys) & (self.rest[at] == rest), self.etags[at]


class AssetIndex:
    """Ids with the hash of an etag, in sorted runs of growing size (a log-structured merge): adding stays cheap."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(run.keys.nbytes + run.rest.nbytes + run.etags.nbytes for run in self._runs)

    def add(self, keys: np.ndarray, rest: np.ndarray, etags: np.ndarray) -> None:
        """Adds ids that are not in it yet. uint64, uint64, int64, of one length."""
        if not len(keys):
            return
        order = np.argsort(keys)
        self._runs.append(_Run(keys[order], rest[order], etags[order]))
        while len(self._runs) > 1 and len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys):
            self._merge_last_two()

    def find(self, keys: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which ids are in it (bool), and their etag hashes (int64, 0 where not)."""
        found, etags = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        for run in self._runs:
            hit, hashes = run.find(keys, rest)
            found |= hit
            etags[hit] = hashes[hit]
        return found, etags

    def _merge_last_two(self) -> None:
        b, a = self._runs.pop(), self._runs.pop()
        keys = np.concatenate([a.keys, b.keys])
        order = np.argsort(keys, kind="stable")  # two sorted runs: a merge
        self._runs.append(
            _Run(keys[order], np.concatenate([a.rest, b.rest])[order], np.concatenate([a.etags, b.etags])[order])
        )


@dataclass(frozen=True)
class Sorted:
    """A listed batch, told apart. `unchanged` and `repeated` (listed before in this run) are counts."""

    new: pa.RecordBatch
    changed: pa.RecordBatch
    unchanged: int
    repeated: int


class KnownAssets:
    """What the lake has, and what this run has listed so far."""

    def __init__(self, lake: Lake | None) -> None:
        self._known, self._listed = AssetIndex(), AssetIndex()
        self.next_number = 0
        if lake is not None:
            parts = []
            for batch in lake.scan("assets", ["asset_id", "etag", "asset_no"], batch_size=65536):
                parts.append(_fingerprint(batch))
                self.next_number = max(self.next_number, int(asset_numbers(batch["asset_no"]).max(initial=-1)) + 1)
            if parts:
                self._known.add(*(np.concatenate(column) for column in zip(*parts)))

    def numbers(self, count: int) -> np.ndarray:
        """The numbers of so many new assets, int64 (N,)."""
        first, self.next_number = self.next_number, self.next_number + count
        return np.arange(first, self.next_number, dtype=np.int64)

    def sort(self, batch: pa.RecordBatch) -> Sorted:
        """Tells a batch's rows apart, and remembers them as listed."""
        keys, rest, etags = _fingerprint(batch)
        _, first = np.unique(np.stack([keys, rest]), axis=1, return_index=True)
        fresh = np.zeros(len(keys), bool)
        fresh[first] = True
        fresh &= ~self._listed.find(keys, rest)[0]
        self._listed.add(keys[fresh], rest[fresh], etags[fresh])
        known, was = self._known.find(keys, rest)
        changed = fresh & known & (was != etags)
        new = fresh & ~known
        return Sorted(
            batch.filter(pa.array(new)),
            batch.filter(pa.array(changed)),
            int((fresh & known & ~changed).sum()),
            int((~fresh).sum()),
        )


def replace_assets(lake: Lake, rows: pa.Table) -> None:
    """Updates changed assets in place and makes them pending again. rows: whole rows of `assets`, ids unique and present, with
    numbers of their own, since what ops have covered was the old source.

    What settled them goes first, then what was made of them: killed in between, an asset is pending with its old etag, which
    the next ingest corrects, and its rows are swept.
    """
    if not rows.num_rows:
        return
    ids = rows["asset_id"].to_pylist()
    for table in ("ledger", "quarantine", *derived_tables(lake)):
        lake.delete(table, "asset_id", ids)
    lake.change("assets", "update", lambda ds: ds.merge_insert("asset_id").when_matched_update_all().execute(rows))


def _fingerprint(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids as two uint64 and etags as int64 hashes. Python's string hash: only this process compares them."""
    ids = bytes.fromhex("".join(batch["asset_id"].to_pylist()))
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    etags = np.fromiter(map(hash, batch["etag"].to_pylist()), np.int64, count=batch.num_rows)
    return halves[:, 0].copy(), halves[:, 1].copy(), etags
