"""Keeping a lake fast: small fragments merged, vector and scalar indices built and extended, old versions let go.

Where a Ray is running, large tables are spread over it by lance-ray; everything else Lance does in this process. Each step is a
change like any other (`Lake.change`). lance-ray opens a table by its address: what it commits from a handle that is older than
a takeover fails all the same.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from pipelines.lake.coverage import fold_coverage
from pipelines.lake.indices import (
    KINDS,
    SCALAR_COLUMNS,
    WANTED_RECALL,
    IndexReport,
    Kind,
    data_bytes,
    fragment_bytes,
    index_scalar,
    index_vectors,
    newest,
    workers,
    worth_distributing,
)
from pipelines.lake.keys import all_tables
from pipelines.lake.lake import Lake
from pipelines.lake.lease import Lease
from vfm_ops.errors import UsageError

# Bytes of a fragment after compaction, about.
FRAGMENT_BYTES = 1 << 30
COMPACT_AFTER = 64  # fragments that a run appends to a table
HEAVY_ROW = 4096  # bytes, on average: a table of pictures


@dataclass
class MaintenanceReport:
    """What one pass did. fragments: {table: (before, after)}; freed_bytes: by letting old versions go."""

    fragments: dict[str, tuple[int, int]] = field(default_factory=dict)
    indices: list[IndexReport] = field(default_factory=list)
    freed_bytes: int = 0
    distributed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)


def maintain(
    lake: Lake,
    *,
    columns: list[str] | None = None,
    kind: Kind = "auto",
    recall: float = WANTED_RECALL,
    compact: bool = True,
    keep: timedelta | None = timedelta(days=7),
) -> MaintenanceReport:
    """Compacts every table, builds or extends its indices, and removes versions older than `keep` (None keeps all).

    columns: embedding columns to index, all by default. kind, recall: see `index_vectors`. Holds the lake's lease. Raises
    UsageError for an unknown kind or column, and when another run holds the lake.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no index kind {kind!r}; known: {', '.join(KINDS)}")
    known = embedding_columns(lake)
    if unknown := [c for c in columns or [] if c not in known]:
        raise UsageError(f"frames has no embedding column {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    datasets = [lake.dataset(table) for table in SCALAR_COLUMNS]
    report = MaintenanceReport(distributed=any(d is not None and worth_distributing(d) for d in datasets))
    with Lease(lake, f"index-{uuid.uuid4().hex[:12]}"):
        tables = all_tables(lake)
        for table in tables:
            if compact and table != "lease" and lake.count(table):
                report.fragments[table] = compact_table(lake, table)
        for table, names in SCALAR_COLUMNS.items():
            report.indices += [index_scalar(lake, table, name) for name in names if lake.count(table)]
        for name in columns or known:
            report.indices.append(index_vectors(lake, name, kind, recall))
        if keep is not None:
            report.freed_bytes = sum(forget_versions(lake, table, keep) for table in tables)
    return report


def embedding_columns(lake: Lake) -> list[str]:
    """Columns of frames that hold a model's vectors."""
    return [f.name for f in lake.schema("frames") if (f.metadata or {}).get(b"spec") is not None]


# -- fragments and versions ------------------------------------------------------------------------------------------


def compact_table(lake: Lake, table: str, spread: bool = True) -> tuple[int, int]:
    """Merges small fragments, up to about FRAGMENT_BYTES each, and drops deleted rows. Returns fragments (before, after).

    spread: over a Ray that is running, where the table is large enough.
    """
    dataset = newest(lake, table)
    before = len(dataset.get_fragments())
    if table == "coverage" and fold_coverage(lake):  # first: the order of its rows counts until they are folded
        dataset = newest(lake, table)
    target = int(np.clip(FRAGMENT_BYTES * dataset.count_rows() // max(data_bytes(dataset), 1), 1024, 1 << 20))

    def compact(dataset: Any) -> None:
        if spread and worth_distributing(dataset):
            import lance_ray

            options = {"target_rows_per_fragment": target}
            lance_ray.compact_files(dataset.uri, compaction_options=options, num_workers=workers(before))
        else:
            dataset.optimize.compact_files(target_rows_per_fragment=target)

    lake.change(table, "compact", compact)
    return before, len(newest(lake, table).get_fragments())


class RunningCompaction:
    """Merges what a run appends to its tables, as it goes: a commit writes down every fragment that there is.

    Rows that hold pictures are left to `maintain`: until old versions go, each would be stored twice.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake, self._appended, self._heavy = lake, Counter[str](), set[str]()

    def appended(self, table: str, fragments: int = 1) -> None:
        """After a commit of so many fragments."""
        self._appended[table] += fragments
        if self._appended[table] < COMPACT_AFTER or table in self._heavy:
            return
        self._appended[table] = 0
        late = newest(self._lake, table).get_fragments()[-COMPACT_AFTER:]
        if fragment_bytes(late) >= HEAVY_ROW * sum(f.metadata.num_rows for f in late):
            self._heavy.add(table)
        else:
            compact_table(self._lake, table, spread=False)  # Ray's CPUs are the run's


def forget_versions(lake: Lake, table: str, keep: timedelta) -> int:
    """Removes versions older than `keep`, except the newest and tagged ones. Returns freed bytes."""
    if lake.dataset(table) is None:
        return 0
    options = {"older_than": keep, "error_if_tagged_old_versions": False}
    freed = lake.change(table, "remove old versions of", lambda ds: ds.cleanup_old_versions(**options).bytes_removed)
    return int(freed or 0)


def table_bytes(lake: Lake, table: str) -> int:
    """Bytes of the data files that the newest version of a table refers to."""
    dataset = lake.dataset(table)
    return 0 if dataset is None else data_bytes(dataset)
