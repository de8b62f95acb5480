"""What people and imports say of a lake's assets and frames. Anyone adds to it at any time, and nothing in it is ever changed.

A row is a version of an annotation; the last version of each counts, unless it says that the annotation was removed. The key
(annotation_id, version) is the table's primary key, and rows come in by Lance's merge on it alone: that refuses a key that is
there already, also where another writer was faster between the look and the commit. So of two who write a version, one is
refused, looks again and writes the next. That needs no lease, and the table has no fence (`schema.UNLEASED`).
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa

from pipelines.lake.access import writable
from pipelines.lake.annotation_rows import Row, as_table, checked_rows, given_rows, in_parts
from pipelines.lake.arrow import Readable, row_hashes
from pipelines.lake.sql import equals, one_of
from pipelines.lake.tables import Table
from vfm_ops.errors import UsageError, VfmError

TABLE = "annotations"
KEY = ["annotation_id", "version"]
_STATE = [*KEY, "removed"]
# Of an annotation these never change: they say what it is of.
_FIXED = ("asset_id", "frame_id", "frame_index", "kind")
_KEPT = (*_FIXED, "asset_no", "pts_s", "object_id")
MOST_TURNS = 50  # of a writer that others are faster than


class Writable(Readable, Protocol):
    """What is written to: `pipelines.lake.lake.Lake`, which inherits from this module and so can't be imported here."""

    def ensure(self, table: str) -> None: ...

    def change(
        self, table: str, what: str, apply: Callable[[Any], Any], landed: Callable[[Any], bool] | None = None
    ) -> Any: ...


class Annotated:
    """The part of a `Lake` that is about annotations."""

    @property
    def annotations(self) -> Table:
        """What counts now of what people and imports said: the last version of each annotation, without those removed.

        It answers as every table does; `annotations.dataset` is all versions. Each question looks at the ids of all rows.

        Example:
            >>> lake.annotations.to_pandas("author = 'ann'", ["frame_id", "label", "box"])
        """
        return Table(CurrentAnnotations(cast(Readable, self)), TABLE)

    def add_annotations(self, rows: Any, *, author: str, source: str = "person", replace: bool = False) -> list[str]:
        """Adds annotations, or new versions of those that have the same id. No lease is needed.

        An annotation that is given an `object_id` is the same one whenever the same is said of that object there: its id
        is made of asset, frame, kind and object. One without is a new one.

        Args:
            rows: Mappings, a `pyarrow.Table` or a DataFrame. Each says `frame_id`, or `asset_id` (and `frame_index`, of a
                video's frame); what it is by `kind`: label, tag or verdict with a `label`; box, mask or track with `box`
                (xyxy in pixels of the stored frame), `mask` (COCO RLE, or bool (H, W)), or both, and mostly a `label`.
                Beside it `object_id`, `score`, `pts_s`, `prompts` (as JSON), `author`, `source`, `annotation_id`.
            author: Who says so, where a row does not.
            source: How it came about, such as `"vfm segment sam2:pocket"`, where a row does not say.
            replace: Removes what is there of the same objects and is not among the rows: frames on which an object was and
                is not any more. What stands before a "/" in an `object_id` names several objects that come and go together.

        Returns:
            The ids, in the order of the rows.

        Raises:
            UsageError: A row is no annotation, is of nothing in the lake, or does not fit its frame; nothing is added.

        Example:
            >>> lake.add_annotations([{"frame_id": frame, "label": "cat", "box": [10, 20, 90, 80]}], author="ann")
        """
        lake = cast(Writable, self)
        if not (wanted := given_rows(rows)):
            return []
        named = [str(row["annotation_id"]) for row in wanted if row.get("annotation_id")]
        complete = checked_rows(lake, wanted, author, source)
        with writable(lake.root):
            _write(lake, lambda: _next_versions(lake, complete, named, replace))
        return [row["annotation_id"] for row in complete]

    def remove_annotations(self, ids: str | Iterable[str], *, author: str, source: str = "person") -> int:
        """Removes annotations: each gets a last version that says so, and its history stays. Returns how many.

        Args:
            ids: Of annotations that are there.
            author: Who removes them.
            source: How it came about.

        Raises:
            UsageError: There is no such annotation, or it was removed already; none is removed.
        """
        lake = cast(Writable, self)
        wanted = {ids} if isinstance(ids, str) else set(ids)
        if not wanted:
            return 0

        def removals() -> list[Row]:
            known = latest(lake, [one_of("annotation_id", part) for part in in_parts(wanted)])
            if missing := sorted(i for i in wanted if i not in known or known[i]["removed"]):
                raise UsageError(f"the lake has no annotation {missing[0]!r}, or it was removed")
            return [_removal(known[i], author, source) for i in sorted(wanted)]

        with writable(lake.root):
            _write(lake, removals)
        return len(wanted)

    def annotation_history(self, annotation_id: str) -> pa.Table:
        """All versions of an annotation, the first one first, with who said each, and when. UsageError when there is none."""
        rows = cast(Readable, self).read(TABLE, None, equals("annotation_id", annotation_id))
        if not rows.num_rows:
            raise UsageError(f"the lake has no annotation {annotation_id!r}")
        return rows.sort_by("version")


class CurrentAnnotations:
    """A lake as if its table of annotations held the last version of each alone: what `Table` reads from.

    Which those are is asked of all rows first, by each question anew, or, pinned, once: 16 bytes of memory a row.
    """

    def __init__(self, lake: Readable, pinned: bool = False) -> None:
        self._lake, self.root = lake, lake.root
        self._last = _LastVersions(lake) if pinned else None
        self.tables, self.dataset, self.schema, self.take = lake.tables, lake.dataset, lake.schema, lake.take

    def scan(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """As `Lake.scan`, of what counts."""
        limit = options.pop("limit", None)
        left = np.inf if limit is None else limit
        wanted = None if columns is None else [*columns, *(name for name in _STATE if name not in columns)]
        last = self._last or _LastVersions(self._lake)
        for batch in self._lake.scan(table, wanted, filter, **options):
            counted = batch.filter(last.are_in(batch))
            counted = counted.slice(0, int(min(left, counted.num_rows)))
            left -= counted.num_rows
            if columns is not None:
                extra = ["_rowid"] if options.get("with_row_id") else []
                counted = counted.select([*columns, *extra])
            if counted.num_rows:
                yield counted
            if left <= 0:
                return

    def read(self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any) -> pa.Table:
        """As `Lake.read`, of what counts."""
        batches = list(self.scan(table, columns, filter, **options))
        if batches:
            return pa.Table.from_batches(batches)
        schema = self.schema(table)
        return (pa.schema([schema.field(c) for c in columns]) if columns else schema).empty_table()

    def count(self, table: str, filter: str | None = None) -> int:
        """As `Lake.count`, of what counts."""
        return sum(batch.num_rows for batch in self.scan(table, _STATE, filter))


class _LastVersions:
    """The last version of each annotation, by the hash of its id; 0 for one that was removed."""

    def __init__(self, lake: Readable) -> None:
        hashes, versions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for batch in lake.scan(TABLE, _STATE):
            hashes.append(row_hashes(batch["annotation_id"]))
            number = batch["version"].to_numpy(zero_copy_only=False).astype(np.int64)
            gone = batch["removed"].fill_null(False).to_numpy(zero_copy_only=False)
            versions.append(2 * number + gone)
        keys, packed = np.concatenate(hashes), np.concatenate(versions)
        order = np.lexsort((packed, keys))
        keys, packed = keys[order], packed[order]
        ends = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.empty(0, bool)
        self.keys, last = keys[ends], packed[ends]
        self.versions = np.where(last % 2 == 0, last // 2, 0)

    def are_in(self, batch: pa.RecordBatch) -> pa.Array:
        """Which rows are the last version of theirs."""
        hashes = row_hashes(batch["annotation_id"])
        versions = batch["version"].to_numpy(zero_copy_only=False)
        if not len(self.keys):  # of a row that came since
            return pa.array(np.zeros(len(hashes), bool))
        at = np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)
        return pa.array((self.keys[at] == hashes) & (self.versions[at] == versions))


# -- writing -----------------------------------------------------------------------------------------------------------


class _TakenError(Exception):
    """Another writer has written a version first."""


def _write(lake: Writable, make: Callable[[], list[Row]]) -> None:
    """Inserts rows, all or none. make: gives them as of now; asked again when another writer was faster."""
    lake.ensure(TABLE)
    write_id = uuid.uuid4().hex
    told = {"created_at": datetime.now(UTC), "write_id": write_id}

    def landed(dataset: Any) -> bool:
        return bool(dataset.count_rows(filter=equals("write_id", write_id)))

    for turn in range(MOST_TURNS):
        rows = as_table([row | told for row in make()])
        try:
            lake.change(TABLE, "add to", partial(_insert, rows=rows), landed)
            return
        except _TakenError:
            if landed(lake.dataset(TABLE)):  # by a try whose answer was lost
                return
            time.sleep(random.random() * min(0.05 * (turn + 1), 1.0))
    raise VfmError(f"others write the same annotations of {lake.root} all the time: try again")


def _insert(dataset: Any, rows: pa.Table) -> None:
    try:
        dataset.merge_insert(KEY).when_matched_fail().when_not_matched_insert_all().execute(rows)
    except OSError as error:
        if "found matching row" in str(error) or "Too many concurrent writers" in str(error):
            raise _TakenError from error
        raise


def _next_versions(lake: Writable, rows: list[Row], named: list[str], replace: bool) -> list[Row]:
    """Rows with their versions, and the removals that come with them. named: ids that a caller chose."""
    conditions = [one_of("asset_id", part) for part in in_parts({row["asset_id"] for row in rows})]
    known = latest(lake, conditions + [one_of("annotation_id", part) for part in in_parts(set(named))])
    numbered = []
    for row in rows:
        before = known.get(row["annotation_id"])
        if before is not None and any(before[name] != row[name] for name in _FIXED):
            raise UsageError(
                f"annotation {row['annotation_id']} is a {before['kind']} of {before['frame_id'] or before['asset_id']}: "
                "a new version of it says the same kind of thing of the same place"
            )
        numbered.append(row | {"version": (before["version"] if before else 0) + 1})
    if not replace:
        return numbered
    written = {row["annotation_id"] for row in rows}
    groups = {(row["asset_id"], _group(row)): row for row in rows if row["object_id"] is not None}
    for annotation_id, before in known.items():
        by = groups.get((before["asset_id"], _group(before)))
        if by is not None and annotation_id not in written and not before["removed"]:
            numbered.append(_removal(before, by["author"], by["source"]))
    return numbered


def _group(row: Row) -> str | None:
    return None if row["object_id"] is None else row["object_id"].partition("/")[0]


def _removal(before: Row, author: str, source: str) -> Row:
    kept = {name: before[name] for name in ("annotation_id", *_KEPT)}
    return kept | {"version": before["version"] + 1, "removed": True, "author": author, "source": source}


def latest(lake: Readable, conditions: list[str], values: Sequence[str] = ()) -> dict[str, Row]:
    """The last version of each annotation for which one of the conditions holds, removed ones too; of its values those named.

    conditions: on what never changes of an annotation, its id included.
    """
    found: dict[str, Row] = {}
    for condition in conditions:
        for batch in lake.scan(TABLE, [*_STATE, *_KEPT, *values], condition):
            for row in batch.to_pylist():
                if row["version"] >= found.get(row["annotation_id"], row)["version"]:
                    found[row["annotation_id"]] = row
    return found
