"""Registering assets: which of a listed batch are new, which changed, and how either reaches the table.

A lake is compared by 24 bytes an asset, in sorted arrays; no string of an existing asset is held. Of a large one the arrays
lie in temporary files, 2.4 GB for 100 million assets, so that memory does not grow with it.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.lake.coverage import asset_numbers
from pipelines.lake.keys import derived_tables
from pipelines.lake.lake import Lake
from pipelines.lake.partitioned import no_room

SPILLED = 1 << 21  # ids of a run that is put into a file: 50 MB


@dataclass(frozen=True)
class _Run:
    """Sorted by `keys` (first 64 bits of the ids); `rest` the other 64, `etags` their hashes. file: that they lie in."""

    keys: np.ndarray
    rest: np.ndarray
    etags: np.ndarray
    file: mmap.mmap | None = None

    def find(self, keys: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the ids that are in it among those asked for, and their etag hashes. keys: sorted, since a file is
        then read from front to back."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        hit = np.flatnonzero(self.keys[at] == keys)
        hit = hit[self.rest[at[hit]] == rest[hit]]
        etags = self.etags[at[hit]]
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)  # the system keeps what it has room for; it is not this process's
        return hit, etags

    def spilled(self) -> _Run:
        """The same in a temporary file, which goes when nobody has it any more. UsageError where there is no room for it."""
        columns = (self.keys, self.rest, self.etags)
        try:
            with tempfile.TemporaryFile(prefix="vfm-assets-") as file:
                for column in columns:
                    file.write(column.data)
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError as e:
            raise no_room(f"the ids of so many assets ({24 * len(self.keys) >> 20} MB)", e) from e
        n = len(self.keys)
        keys, rest = (np.frombuffer(mapped, np.uint64, n, 8 * n * i) for i in (0, 1))
        return _Run(keys, rest, np.frombuffer(mapped, np.int64, n, 16 * n), mapped)


class AssetIndex:
    """Ids with the hash of an etag, in sorted runs of growing size (a log-structured merge): adding stays cheap.

    A run of SPILLED ids or more lies in a file, and is merged no more.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays that lie in no file."""
        held = [run for run in self._runs if run.file is None]
        return sum(run.keys.nbytes + run.rest.nbytes + run.etags.nbytes for run in held)

    def add(self, keys: np.ndarray, rest: np.ndarray, etags: np.ndarray) -> None:
        """Adds ids that are not in it yet. uint64, uint64, int64, of one length. UsageError where a file has no room."""
        if not len(keys):
            return
        order = np.argsort(keys)
        self._runs.append(_Run(keys[order], rest[order], etags[order]))
        while len(self._runs) > 1 and self._runs[-2].file is None and self._behind():
            self._merge_last_two()
        if len(self._runs[-1].keys) >= SPILLED:
            self._runs[-1] = self._runs[-1].spilled()

    def find(self, keys: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which ids are in it (bool), and their etag hashes (int64, 0 where not)."""
        found, etags = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        order = np.argsort(keys)
        keys, rest = keys[order], rest[order]
        for run in self._runs:
            hit, hashes = run.find(keys, rest)
            found[order[hit]], etags[order[hit]] = True, hashes
        return found, etags

    def _behind(self) -> bool:
        """Whether the last run has grown to half of the one before it."""
        return len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys)

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
            for batch in lake.scan("assets", ["asset_id", "etag", "asset_no"], batch_size=65536):
                self._known.add(*_fingerprint(batch))
                self.next_number = max(self.next_number, int(asset_numbers(batch["asset_no"]).max(initial=-1)) + 1)

    def numbers(self, count: int) -> np.ndarray:
        """The numbers of so many new assets, int64 (N,)."""
        first, self.next_number = self.next_number, self.next_number + count
        return np.arange(first, self.next_number, dtype=np.int64)

    def sort(self, batch: pa.RecordBatch) -> Sorted:
        """Tells a batch's rows apart, and remembers them as listed."""
        keys, rest, etags = _fingerprint(batch)
        fresh = _first_of_each(keys, rest) & ~self._listed.find(keys, rest)[0]
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


def _first_of_each(keys: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Whether an id comes here for the first time, bool (N,)."""
    order = np.lexsort((rest, keys))  # stable
    changes = (np.diff(keys[order]) != 0) | (np.diff(rest[order]) != 0)
    first = np.zeros(len(keys), bool)
    first[order[np.flatnonzero(np.concatenate([[True], changes]))] if len(keys) else order] = True
    return first


def _fingerprint(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids as two uint64 and etags as int64 hashes. Python's string hash: only this process compares them."""
    ids = bytes.fromhex("".join(batch["asset_id"].to_pylist()))
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    etags = np.fromiter(map(hash, batch["etag"].to_pylist()), np.int64, count=batch.num_rows)
    return halves[:, 0].copy(), halves[:, 1].copy(), etags
