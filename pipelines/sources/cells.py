"""Reading back what tables.py listed: the bytes of a cell, by `uri`, `member` (COLUMN[ROW]) and container.

Neighbouring rows are asked for one after the other, so a parquet file's last batch is kept and going forward decodes
nothing twice; going back starts the row group again.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.lake.lake import filesystem
from pipelines.sources.columns import Leaf, is_blob, leaves, values_of
from pipelines.sources.tables import check_lance_files, is_lance_panic, parquet_path
from vfm_ops.errors import MediaError
from vfm_ops.media.source import MediaSource

_OPEN_TABLES = 8
_BATCH_ROWS = 32
_PLACE = re.compile(r"(.+?)\[(\d{1,18})\](?:\[(\d{1,18})\])?", re.DOTALL)


def parse_member(member: str) -> tuple[str, int, int | None]:
    """`image.bytes[17]` -> ('image.bytes', 17, None), `images[3][1]` -> ('images', 3, 1). MediaError for anything else."""
    if (match := _PLACE.fullmatch(member)) is None:
        raise MediaError("unreadable", f"{member!r} names no cell of a table; ingest the source again.")
    column, row, element = match.groups()
    return column, int(row), None if element is None else int(element)


class RowReader:
    """Bytes of cells, for one thread. Keeps the last few tables open, and of each one batch of 32 rows."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[str, str], _ParquetCells | _LanceCells] = OrderedDict()

    def read(self, uri: str, member: str, container: str, etag: str | None = None) -> bytes:
        """The bytes of an asset whose container is `parquet` or `lance`. etag: as `MediaSource.etag`, of a parquet file.

        MediaError('missing' | 'unreadable' | 'not_media' | 'changed' | 'empty') when the table is gone, damaged, shorter
        now, or the cell is null.
        """
        column, row, element = parse_member(member)
        try:
            data = self._table(uri, column, container, etag).read(row, element)
        except FileNotFoundError as e:
            raise MediaError("missing", f"{uri} does not exist; check the path, or ingest again.") from e
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, pa.ArrowException) as e:
            raise MediaError("unreadable", f"{uri} ({member}) can't be read: {str(e).split(chr(10))[0]}.") from e
        except BaseException as e:
            if not is_lance_panic(e):
                raise
            raise MediaError("unreadable", f"{uri} ({member}) can't be read: the table is damaged.") from e
        if not data:
            raise MediaError("empty", f"{uri} ({member}) holds no bytes.")
        return data

    def _table(self, uri: str, column: str, container: str, etag: str | None) -> _ParquetCells | _LanceCells:
        key = (uri, column)
        if key not in self._tables:
            if len(self._tables) >= _OPEN_TABLES:
                self._tables.popitem(last=False)
            self._tables[key] = _LanceCells(uri, column) if container == "lance" else _ParquetCells(uri, column, etag)
        self._tables.move_to_end(key)
        return self._tables[key]


def media_source(asset: Mapping[str, Any], reader: RowReader) -> MediaSource:
    """Where the bytes of a row of `assets` (uri, member, container, offset, length, etag) lie; those of a cell are read.

    MediaError as RowReader.read.
    """
    # Of an archive's member or a table's cell, what precedes the '@' is the file's own (`list_tar`, `tables`).
    etag = (asset.get("etag") or "").partition("@")[0] or None
    if asset["container"] in ("parquet", "lance"):
        name = f"{asset['uri']}#{asset['member']}"
        return MediaSource(name, data=reader.read(asset["uri"], asset["member"], asset["container"], etag))
    if asset["container"] is not None:
        return MediaSource(asset["uri"], asset["offset"], asset["length"], etag=etag)
    return MediaSource(asset["uri"], etag=etag)


class _ParquetCells:
    def __init__(self, uri: str, column: str, etag: str | None) -> None:
        source = MediaSource(uri, etag=etag)
        with nullcontext(None) if source.path is None else source.native_path() as path:
            store, inner = filesystem(path or uri)
            self._file = pq.ParquetFile(store.open_input_file(inner), pre_buffer=False, buffer_size=1 << 20)
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._leaf = _leaf(self._file.schema_arrow, column)
        self._group, self._next, self._base = -1, 0, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._cells = _Cells()

    def read(self, row: int, element: int | None) -> bytes | None:
        """Cell of a row, counted over the whole file."""
        if row >= self._starts[-1]:
            raise IndexError(f"it has {self._starts[-1]} rows now")
        group = next(g for g, start in enumerate(self._starts[1:]) if row < start)
        if group != self._group or row < self._base:
            self._group, self._next = group, self._starts[group]
            columns = [parquet_path(self._file, self._leaf)]
            self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
            self._base, self._cells = self._next, _Cells()
        while row >= self._base + self._cells.rows:
            if (batch := next(self._batches, None)) is None:
                raise ValueError("its rows end before its footer says so")
            self._cells = _Cells(batch, self._leaf)
            self._base, self._next = self._next, self._next + self._cells.rows
        return self._cells.read(row - self._base, element)


class _LanceCells:
    def __init__(self, uri: str, column: str) -> None:
        from pipelines.lake.query import open_table
        from pipelines.sources.rows import local_path

        check_lance_files(local_path(uri))
        self._dataset = open_table(uri)
        self._leaf = _leaf(self._dataset.schema, column)
        self._rows = self._dataset.count_rows()

    def read(self, row: int, element: int | None) -> bytes | None:
        """Cell of a row, in the table's order."""
        if row >= self._rows:
            raise IndexError(f"it has {self._rows} rows now")
        if len(self._leaf.steps) == 1 and is_blob(self._dataset.schema.field(self._leaf.name)):
            return self._blob(row)
        column = self._leaf.steps[0] if self._leaf.lists else self._leaf.name
        batch = self._dataset.take([row], columns=[column]).combine_chunks().to_batches()[0]
        return _Cells(batch, self._leaf).read(0, element)

    def _blob(self, row: int) -> bytes | None:
        place = self._dataset.take([row], columns=[self._leaf.name]).to_pylist()[0][self._leaf.name]
        if place is None:
            return None
        if place.get("blob_uri"):  # a file of whoever's choosing
            raise ValueError("it names another file, and only what a table holds itself is read")
        (blob,) = self._dataset.take_blobs(self._leaf.name, indices=[row])
        if blob is None:
            return None
        with blob:
            return blob.read()


class _Cells:
    """The cells of a batch, with the row of each where they lie in lists."""

    def __init__(self, batch: pa.RecordBatch | None = None, leaf: Leaf | None = None) -> None:
        self.rows = 0 if batch is None else batch.num_rows
        if batch is not None and leaf is not None:
            self._values, self._in_list = values_of(batch, leaf)

    def read(self, row: int, element: int | None) -> bytes | None:
        """The bytes of a cell. IndexError when the row's list is shorter."""
        at = row
        if self._in_list is not None:
            first, end = np.searchsorted(self._in_list, [row, row + 1])
            at = int(first) + (element or 0)
            if at >= end:
                raise IndexError(f"its list has {end - first} elements now")
        return self._values[at].as_py()


def _leaf(schema: pa.Schema, name: str) -> Leaf:
    for leaf in leaves(schema):
        if leaf.name == name:
            return leaf
    raise KeyError(f"it has no column {name} now")
