"""Ingest: sources listed into the table `assets`, committed while the listing goes on.

sources ──list──▶ batches ──compare with what the lake has──▶ new: appended · changed: replaced, pending again
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from pipelines.lake.assets import KnownAssets, replace_assets
from pipelines.lake.lake import Lake
from pipelines.lake.lease import Lease
from pipelines.lake.maintenance import RunningCompaction
from pipelines.lake.numbers import number_assets
from pipelines.lake.schema import SCHEMAS
from pipelines.progress import State, callback, shows_progress
from pipelines.sources.listing import Source, list_source, resolve_sources
from pipelines.sources.rows import LISTED, ListingOptions, Tally
from vfm_ops.errors import UsageError

# The first rows are seen at once; later commits are rarer, since each is a version of the table.
FIRST_COMMIT_S, COMMIT_S, COMMIT_ROWS = 1.0, 5.0, 50_000
# Listed rows are compared with the lake's together: what is known of a large lake lies in files.
LOOK_S, LOOK_ROWS = 0.5, 32_768


@dataclass
class IngestReport:
    """What an ingest did so far. tally: what was left out, and why."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    repeated: int = 0
    commits: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)

    @property
    def assets(self) -> int:
        """Assets listed, each counted once."""
        return self.added + self.changed + self.unchanged

    @property
    def files(self) -> int:
        """Everything seen, assets and others."""
        return self.assets + self.repeated + self.tally.skipped.total() + self.tally.left_out

    def as_dict(self) -> dict:
        """The report as JSON-able values."""
        return {
            "added": self.added,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "repeated": self.repeated,
            "skipped": dict(self.tally.skipped.most_common()),
            "refused": dict(self.tally.refused.most_common()),
            "unreadable": self.tally.unreadable,
            "problems": self.tally.problems,
            "seconds": round(self.seconds, 3),
            "files_per_s": round(self.files / self.seconds, 1) if self.seconds else 0.0,
        }


def _so_far(report: IngestReport) -> State:
    return report.files, None, f"files, {report.added:,} added, {report.tally.left_out:,} left out"


@shows_progress("ingest", _so_far)
def ingest(
    sources: Iterable[str | os.PathLike] | str | os.PathLike,
    lake_root: str | os.PathLike,
    *,
    lists: Iterable[str] = (),
    options: ListingOptions | None = None,
    progress: Callable[[IngestReport], None] | bool | None = None,
) -> IngestReport:
    """Lists sources into a lake, which is made when it does not exist. Only new and changed assets are written.

    Args:
        sources: Directories, globs, files, `@LIST`s, tar, parquet and Lance tables; paths or URLs; one, or several.
        lake_root: Directory or object-store prefix of the lake.
        lists: Files of paths and URLs, one a line.
        options: Where captions and labels are, limits on archives, and more.
        progress: A bar in a notebook (None), anywhere (True), nowhere (False); or what is called with the report so far.

    Returns:
        Counts of what was added, changed, left out, and why.

    Raises:
        UsageError: With nothing written: a source is missing, unreadable or holds no media, or another run holds the lake.

    Example:
        >>> ingest("photos", "lake").added
    """
    options = options or ListingOptions()
    named = [sources] if isinstance(sources, str | os.PathLike) else sources
    resolved = resolve_sources([os.fspath(source) for source in named], lists)
    tell = callback(progress) or (lambda report: None)
    if not resolved:
        raise UsageError("no source was named: pass directories, files, archives or URLs")
    for source in resolved:
        _refuse_barren(source, options)
    report, lake = IngestReport(), Lake.create(lake_root)
    with Lease(lake, f"ingest-{uuid.uuid4().hex[:12]}"):
        number_assets(lake)
        committer = _Committer(lake, report)
        for source in resolved:
            with ExitStack() as stack:
                batches = list_source(source, options, report.tally)
                stack.callback(getattr(batches, "close", lambda: None))
                for batch in batches:
                    committer.add(batch)
                    report.seconds = time.monotonic() - report.started
                    tell(report)
        committer.end()
    report.seconds = time.monotonic() - report.started
    tell(report)
    return report


class _Committer:
    """Gathers new and changed rows, and commits them when they are many or old enough."""

    def __init__(self, lake: Lake, report: IngestReport) -> None:
        self._lake, self._report = lake, report
        self._known, self._compaction = KnownAssets(lake), RunningCompaction(lake)
        self._listed: list[pa.RecordBatch] = []
        self._new: list[pa.RecordBatch] = []
        self._changed: list[pa.RecordBatch] = []
        self._last = self._looked = time.monotonic()

    def add(self, batch: pa.RecordBatch) -> None:
        """One batch of a listing."""
        self._listed.append(batch)
        rows = sum(b.num_rows for b in self._listed)
        if rows >= LOOK_ROWS or time.monotonic() - self._looked >= LOOK_S:
            self._look()

    def _look(self) -> None:
        """Tells apart what was listed since the last time, and commits what there is when it is much or old enough."""
        self._looked = time.monotonic()
        if not self._listed:
            return
        told, self._listed = self._known.sort(pa.concat_batches(self._listed)), []
        self._new.append(told.new)
        self._changed.append(told.changed)
        self._report.unchanged += told.unchanged
        self._report.repeated += told.repeated
        rows = sum(b.num_rows for b in self._new) + sum(b.num_rows for b in self._changed)
        wait = COMMIT_S if self._report.commits else FIRST_COMMIT_S
        if rows >= COMMIT_ROWS or (rows and time.monotonic() - self._last >= wait):
            self._commit()

    def end(self) -> None:
        """Writes what has gathered."""
        self._look()
        self._commit()

    def _commit(self) -> None:
        new, changed = (self._complete(batches) for batches in (self._new, self._changed))
        self._new, self._changed = [], []
        if new.num_rows or changed.num_rows:
            self._lake.check_space()
            self._lake.append("assets", new)
            self._compaction.appended("assets")
            replace_assets(self._lake, changed)
            self._report.added += new.num_rows
            self._report.changed += changed.num_rows
            self._report.commits += 1
        self._last = time.monotonic()

    def _complete(self, batches: list[pa.RecordBatch]) -> pa.Table:
        """Listed batches as rows of `assets`: the moment of discovery is now, and each has a number of its own."""
        rows = pa.Table.from_batches(batches, LISTED)
        now = pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC"))
        rows = rows.append_column("discovered_at", pa.repeat(now, rows.num_rows))
        rows = rows.append_column("asset_no", pa.array(self._known.numbers(rows.num_rows), pa.int64()))
        return rows.select(SCHEMAS["assets"].names).cast(SCHEMAS["assets"])


def _refuse_barren(source: Source, options: ListingOptions) -> None:
    """UsageError when a source holds nothing to ingest. Lists until the first asset, which is near where there is one."""
    tally = Tally()
    batches = list_source(source, options, tally)
    try:
        if any(batch.num_rows for batch in batches):
            return
    finally:
        getattr(batches, "close", lambda: None)()
    reason = ""
    if tally.problems:
        reason = f": {tally.problems[0]}" + (f", and {tally.left_out - 1} more" if tally.left_out > 1 else "")
    elif tally.notes:
        reason = f": {tally.notes[0]}"
    elif tally.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in tally.skipped.most_common(3))
        reason = f"; it has {sum(tally.skipped.values())} other items ({kinds})"
    raise UsageError(f"{source.text} holds no images or videos{reason}")
