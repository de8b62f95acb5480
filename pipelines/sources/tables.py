"""Parquet files and Lance tables as sources: a column of encoded bytes, or a column of paths, decided row by row.

A cell of bytes is an asset with container `parquet` or `lance`, its row number as offset, and `COLUMN[ROW]` as member, in a
list `COLUMN[ROW][ELEMENT]`; `RowReader` (pipelines/sources/cells.py) reads it back. A path is an asset of its own, as if a
file list had named it. Listing reads bytes only where it must know whether there are any, so size and, without a hint,
media type stay unknown until processing.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.columns import (
    Leaf,
    MediaColumn,
    column_names,
    find_leaf,
    leaves,
    media_column,
    texts_of,
    values_of,
)
from pipelines.sources.kinds import IMAGE, VIDEO, extension
from pipelines.sources.rows import BATCH_ROWS, AssetRows, ListingOptions, Tally, file_uri, printable
from vfm_ops.errors import UsageError
from vfm_ops.media.local_file import check_regular, look_behind

_HAS_BYTES = "vfm.has_bytes"  # column of a batch that says it, where the bytes themselves are not there
_LOOK_ROWS = 64  # a batch that holds pictures


@dataclass(frozen=True)
class PathRow:
    """A path found in a table, with the annotations of its row."""

    path: str
    caption: str | None
    label: str | None


@dataclass(frozen=True)
class _Table:
    """What is wanted of a table, and what its assets are called. leaves: of the annotations, None where none is wanted."""

    uri: str
    container: str
    etag: str
    column: MediaColumn
    caption: Leaf | None
    label: Leaf | None

    @property
    def needed(self) -> list[Leaf]:
        """What must be read of every row."""
        path = self.column.leaf if self.column.holds == "paths" else self.column.paths
        return [leaf for leaf in (path, self.caption, self.label) if leaf is not None]


def list_parquet(
    file: Any, uri: str, etag: str, options: ListingOptions, tally: Tally
) -> Iterator[pa.RecordBatch | list[PathRow]]:
    """Streams a parquet file's assets: batches of rows with bytes, or lists of paths for the caller to look up.

    file: what pyarrow.parquet opens. A damaged file, or one without a media column, is reported or counted in `tally`.
    """
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        table = _open_table(parquet.schema_arrow, uri, uri, "parquet", etag, options, tally)
        if table is not None:
            yield from _list_rows(_parquet_batches(parquet, table), table, tally)
    except (pa.ArrowException, ValueError, RecursionError) as e:
        tally.problem(uri, f"is no readable parquet file: {str(e).split(chr(10))[0]}")


def list_lance(
    path: str, options: ListingOptions, tally: Tally, within: str | None = None
) -> Iterator[pa.RecordBatch | list[PathRow]]:
    """As `list_parquet`, of a Lance table. within: as `check_lance_files`. OSError, UsageError."""
    from pipelines.lake.query import open_table

    check_lance_files(path, os.path.realpath(path) if within is None and not options.allow_outside else within)
    try:
        dataset = open_table(path)
        etag = f"v{dataset.version}-{dataset.count_rows()}"
        uri = path if "://" in path else file_uri(path)
        table = _open_table(dataset.schema, path, uri, "lance", etag, options, tally)
        if table is not None:
            yield from _list_rows(_lance_batches(dataset, table), table, tally)
    except (pa.ArrowException, ValueError, RuntimeError) as e:
        tally.problem(path, f"is no readable Lance table: {str(e).split(chr(10))[0].split(', /')[0]}")
    except BaseException as e:
        if not is_lance_panic(e):
            raise
        tally.problem(path, f"is a damaged Lance table: {str(e).split(chr(10))[0]}")


def check_lance_files(path: str, within: str | None = None) -> None:
    """Raises OSError when a local Lance table has anything but regular files, which Lance would wait for or follow.

    within: real path of the folder that they must lie in, links followed; None: anywhere. A table in a store is not looked at.
    """
    if "://" in path:
        return

    def stop(error: OSError) -> None:
        raise error

    look_behind(path, within)
    for folder, folders, files in os.walk(path, onerror=stop):
        for name in (*folders, *files):
            inner = os.path.join(folder, name)
            mode = os.lstat(inner).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                try:
                    check_regular(look_behind(inner, within))
                except OSError as e:
                    raise type(e)(e.errno, f"has a part, {inner[len(path) + 1 :]}, that {e.strerror}") from e


def is_lance_panic(error: BaseException) -> bool:
    """Whether Lance's Rust code gave up, which reaches Python as no Exception: one table's damage must not end a run."""
    return type(error).__name__ == "PanicException"


def resolve_row_path(path: str, table_uri: str) -> str:
    """A path found in a table or list, relative to the place where that lies."""
    if "://" in path or path.startswith("/"):
        return path
    folder = table_uri.rpartition("/")[0]
    return f"{folder}/{posixpath.normpath(path)}" if "://" in folder else posixpath.normpath(f"{folder}/{path}")


def _open_table(
    schema: pa.Schema, path: str, uri: str, container: str, etag: str, options: ListingOptions, tally: Tally
) -> _Table | None:
    column = media_column(schema, options.column, path)
    if column is None:
        tally.skip("table without a column of media")
        tally.note(path, f"has no column of media; `column` names one of {column_names(schema)}")
        return None
    found = leaves(schema)
    annotations = []
    for wanted in (options.caption_column, options.label_column):
        leaf = find_leaf(found, wanted) if wanted is not None else None
        if wanted is not None and leaf is None:
            raise UsageError(f"{path} has no column {wanted!r}; it has {column_names(schema)}")
        annotations.append(leaf)
    return _Table(uri, container, etag, column, *annotations)


# -- reading -----------------------------------------------------------------------------------------------------------


def parquet_path(parquet: pq.ParquetFile, leaf: Leaf) -> str:
    """Parquet's own name of a leaf (`images.list.element.bytes`), by which it alone is read."""
    return parquet.schema.column(leaf.number).path


def _parquet_batches(parquet: pq.ParquetFile, table: _Table) -> Iterator[pa.RecordBatch]:
    """Batches of what is needed. The bytes are among it only in row groups whose statistics leave open if some are null."""
    media = table.column.leaf
    for group in range(parquet.metadata.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        needed, rows = table.needed, BATCH_ROWS
        if table.column.holds == "bytes" and _must_look(parquet.metadata.row_group(group), table.column):
            needed, rows = [*needed, media], _LOOK_ROWS
        if needed:
            columns = [parquet_path(parquet, leaf) for leaf in needed]
            yield from parquet.iter_batches(rows, row_groups=[group], columns=columns)
        else:
            yield from _bare_batches(count)


def _must_look(group: Any, column: MediaColumn) -> bool:
    if column.paths is None:
        return column.leaf.lists > 0  # how long each list is
    statistics = group.column(column.leaf.number).statistics
    return statistics is None or not statistics.has_null_count or statistics.null_count > 0


def _bare_batches(rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, BATCH_ROWS):
        nulls = pa.nulls(min(BATCH_ROWS, rows - start))
        yield pa.RecordBatch.from_arrays([nulls], names=["vfm.row"])


def _lance_batches(dataset: Any, table: _Table) -> Iterator[pa.RecordBatch]:
    media, needed = table.column.leaf, table.needed
    rows = BATCH_ROWS
    columns: Any
    if any(leaf.lists for leaf in (media, *needed)):
        # Lance projects fields of structs, but none inside a list.
        top = [media, *needed] if media.lists else needed
        columns, rows = list(dict.fromkeys(leaf.steps[0] for leaf in top)), _LOOK_ROWS
    else:
        columns = {leaf.name: _expression(leaf) for leaf in needed}
        if table.column.holds == "bytes" and table.column.paths is not None:
            columns[_HAS_BYTES] = f"{_expression(media)} IS NOT NULL"
    scanner = dataset.scanner(columns=columns, with_row_id=not columns, scan_in_order=True, batch_size=rows)
    yield from scanner.to_batches()


def _expression(leaf: Leaf) -> str:
    return ".".join(f"`{step}`" for step in leaf.steps)


# -- rows --------------------------------------------------------------------------------------------------------------


def _list_rows(
    batches: Iterable[pa.RecordBatch], table: _Table, tally: Tally
) -> Iterator[pa.RecordBatch | list[PathRow]]:
    base = 0
    for batch in batches:
        cells = _Cells(batch, table)
        paths = cells.paths_instead()
        if len(found := cells.byte_rows(base)):
            yield found.take()
        if paths:
            yield paths
        tally.skip("empty cell", cells.count - cells.given)
        base += batch.num_rows


class _Cells:
    """The cells of one batch: a row's own, or the elements of its list."""

    def __init__(self, batch: pa.RecordBatch, table: _Table) -> None:
        self._table = table
        column, there = table.column, {leaf.name for leaf in leaves(batch.schema)}
        self._in_list: np.ndarray | None = None
        self._paths: list[str | None] | None = None
        self._has: np.ndarray | None = None
        path = column.leaf if column.holds == "paths" else column.paths
        if path is not None:
            values, self._in_list = values_of(batch, path)
            self._paths = texts_of(values, "surrogateescape")
        if column.holds == "paths":
            self._has = np.zeros(len(self._paths or ()), bool)
        elif _HAS_BYTES in there:
            self._has = batch.column(_HAS_BYTES).to_numpy(zero_copy_only=False)
        elif column.leaf.name in there:
            values, self._in_list = values_of(batch, column.leaf)
            self._has = values.is_valid().to_numpy(zero_copy_only=False)
        known = next((len(v) for v in (self._has, self._paths) if v is not None), batch.num_rows)
        self.count, self.given = known, 0
        self._rows = np.arange(known) if self._in_list is None else self._in_list
        self._captions, self._labels = (self._annotations(batch, leaf) for leaf in (table.caption, table.label))

    def byte_rows(self, base: int) -> AssetRows:
        """Rows of the cells that hold bytes. base: number of the batch's first row."""
        rows, table = AssetRows(), self._table
        for at in range(self.count):
            if self._has is not None and not self._has[at]:
                continue
            row = base + int(self._rows[at])
            place = f"[{row}]"
            if self._in_list is not None:
                place += f"[{at - np.searchsorted(self._in_list, self._in_list[at])}]"
            path = self._paths[at] if self._paths is not None else None
            rows.add(
                table.uri,
                _type_of_path(path) or table.column.media_type,
                None,
                f"{table.etag}@{place[1:-1]}",
                member=printable(table.column.leaf.name) + place,
                container=table.container,
                offset=row,
                caption=self._captions[at],
                label=self._labels[at],
            )
        self.given += len(rows)
        return rows

    def paths_instead(self) -> list[PathRow]:
        """Paths of the cells that hold no bytes."""
        if self._paths is None or self._has is None:
            return []
        cells = zip(self._paths, self._has, self._captions, self._labels)
        found = [PathRow(path, caption, label) for path, has, caption, label in cells if path and not has]
        self.given += len(found)
        return found

    def _annotations(self, batch: pa.RecordBatch, leaf: Leaf | None) -> list[str | None]:
        """A text for each cell: its own where there is one an element, else its row's, of several the first."""
        if leaf is None:
            return [None] * self.count
        values, rows = values_of(batch, leaf)
        texts = texts_of(values, "replace")
        if rows is None:
            return [texts[row] for row in self._rows]
        if self._in_list is not None and np.array_equal(rows, self._in_list):
            return texts
        first = dict(zip(rows[::-1].tolist(), texts[::-1]))
        return [first.get(row) for row in self._rows.tolist()]


def _type_of_path(path: str | None) -> str | None:
    ext = extension(posixpath.basename(path)) if path else ""
    return "image" if ext in IMAGE else "video" if ext in VIDEO else None
