"""Numbers of assets: given where they are missing, to assets and to what was derived from them.

Rows that an ingest or a run of today writes have theirs; this is for those of older formats, and of whoever appends rows by
hand. Each table is filled fragment by fragment: a kill costs the fragment that was under way.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.lake.arrow import row_hashes
from pipelines.lake.coverage import asset_numbers
from pipelines.lake.lake import Lake, rows_by_fragment

NUMBERED = ("ledger", "quarantine", "frames", "dropped")
_MISSING = "asset_no IS NULL"


def next_number(lake: Lake) -> int:
    """The number of the next asset."""
    last = -1
    for batch in lake.scan("assets", ["asset_no"]):
        if batch.num_rows:
            last = max(last, int(asset_numbers(batch["asset_no"]).max()))
    return last + 1


def number_assets(lake: Lake) -> int:
    """Gives assets, and their rows in other tables, the numbers that they lack. Returns how many assets got one."""
    lake.ensure("assets")
    missing = rows_by_fragment(lake.table("assets"), _MISSING)
    given = next_number(lake) if missing else 0
    for fragment in missing:
        ids = [b["_rowid"] for b in lake.scan_fragment("assets", fragment, [], 65536, _MISSING)]
        rows = pa.concat_arrays(ids)
        numbers = pa.array(np.arange(given, given + len(rows)), pa.int64())
        given += len(rows)
        lake.commit_columns(
            "assets", lake.write_columns("assets", fragment, pa.table({"_rowid": rows, "asset_no": numbers}))
        )
    index: _Index | None = None
    for table in NUMBERED:
        if lake.dataset(table) is None:
            continue
        lake.ensure(table)
        for fragment in rows_by_fragment(lake.table(table), _MISSING):
            index = index or _Index(lake)
            _number_rows(lake, table, fragment, index)
    return sum(missing.values())


class _Index:
    """Numbers by the first 64 bits of the ids, in sorted arrays: 16 bytes an asset."""

    def __init__(self, lake: Lake) -> None:
        keys, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for batch in lake.scan("assets", ["asset_id", "asset_no"]):
            keys.append(row_hashes(batch["asset_id"]))
            numbers.append(asset_numbers(batch["asset_no"]))
        order = np.argsort(np.concatenate(keys), kind="stable")
        self.keys, self.numbers = np.concatenate(keys)[order], np.concatenate(numbers)[order]

    def find(self, ids: pa.Array) -> np.ndarray:
        """int64 (N,); -1 for an asset that is not there."""
        wanted = row_hashes(ids)
        if not len(self.keys):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.numbers[at], -1)


def _number_rows(lake: Lake, table: str, fragment: int, index: _Index) -> None:
    rows, numbers = [], []
    for batch in lake.scan_fragment(table, fragment, ["asset_id"], 65536, _MISSING):
        rows.append(batch["_rowid"])
        numbers.append(index.find(batch["asset_id"]))
    found = np.concatenate(numbers)
    columns = {"_rowid": pa.concat_arrays(rows), "asset_no": pa.array(found, pa.int64())}
    lake.commit_columns(table, lake.write_columns(table, fragment, pa.table(columns)))
