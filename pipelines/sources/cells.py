"""Reading back what tables.py listed: the bytes of a cell, by `uri`, `member` (COLUMN[ROW]) and container.

Neighbouring rows are asked for one after the other, so a parquet file's last batch is kept and going forward decodes
nothing twice; going back starts the row group again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.lake.lake import filesystem
from vfm_ops.errors import MediaError
from vfm_ops.media.source import MediaSource

_OPEN_TABLES = 8
_BATCH_ROWS = 32


def parse_member(member: str) -> tuple[str, int]:
    """`image.bytes[17]` -> ('image.bytes', 17). MediaError('unreadable') for anything else."""
    column, bracket, row = member.rpartition("[")
    if not (bracket and row.endswith("]") and row[:-1].isdigit()):
        raise MediaError("unreadable", f"{member!r} names no cell of a table; ingest the source again.")
    return column, int(row[:-1])


class RowReader:
    """Bytes of cells, for one thread. Keeps the last few tables open, and of each one batch of 32 cells."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[str, str], _ParquetCells | _LanceCells] = OrderedDict()

    def read(self, uri: str, member: str, container: str) -> bytes:
        """The bytes of an asset whose container is `parquet` or `lance`.

        MediaError('missing' | 'unreadable' | 'empty') when the table is gone, damaged, shorter now, or the cell is null.
        """
        column, row = parse_member(member)
        try:
            data = self._table(uri, column, container).read(row)
        except FileNotFoundError as e:
            raise MediaError("missing", f"{uri} does not exist; check the path, or ingest again.") from e
        except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as e:
            raise MediaError("unreadable", f"{uri} ({member}) can't be read: {str(e).split(chr(10))[0]}.") from e
        if not data:
            raise MediaError("empty", f"{uri} ({member}) holds no bytes.")
        return data

    def _table(self, uri: str, column: str, container: str) -> _ParquetCells | _LanceCells:
        key = (uri, column)
        if key not in self._tables:
            if len(self._tables) >= _OPEN_TABLES:
                self._tables.popitem(last=False)
            self._tables[key] = _LanceCells(uri, column) if container == "lance" else _ParquetCells(uri, column)
        self._tables.move_to_end(key)
        return self._tables[key]


def media_source(asset: Mapping[str, Any], reader: RowReader) -> MediaSource:
    """Where the bytes of a row of `assets` (uri, member, container, offset, length) lie; those of a cell are read.

    MediaError as RowReader.read.
    """
    if asset["container"] in ("parquet", "lance"):
        name = f"{asset['uri']}#{asset['member']}"
        return MediaSource(name, data=reader.read(asset["uri"], asset["member"], asset["container"]))
    if asset["container"] is not None:
        return MediaSource(asset["uri"], asset["offset"], asset["length"])
    return MediaSource(asset["uri"])


class _ParquetCells:
    def __init__(self, uri: str, column: str) -> None:
        store, path = filesystem(uri)
        self._file = pq.ParquetFile(store.open_input_file(path), pre_buffer=False, buffer_size=1 << 20)
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._column = column
        self._group, self._next, self._base = -1, 0, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._cells: pa.Array = pa.array([], pa.binary())

    def read(self, row: int) -> bytes | None:
        """Cell of a row, counted over the whole file."""
        if row >= self._starts[-1]:
            raise IndexError(f"it has {self._starts[-1]} rows now")
        group = next(g for g, start in enumerate(self._starts[1:]) if row < start)
        if group != self._group or row < self._base:
            self._group, self._next = group, self._starts[group]
            self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self._column])
            self._base, self._cells = self._next, self._cells[:0]
        while row >= self._base + len(self._cells):
            self._cells = _leaf(next(self._batches), self._column)
            self._base, self._next = self._next, self._next + len(self._cells)
        return self._cells[row - self._base].as_py()


class _LanceCells:
    def __init__(self, uri: str, column: str) -> None:
        from pipelines.lake.query import open_table

        self._dataset, self._column = open_table(uri), column
        self._rows = self._dataset.count_rows()

    def read(self, row: int) -> bytes | None:
        """Cell of a row, in the table's order."""
        if row >= self._rows:
            raise IndexError(f"it has {self._rows} rows now")
        batch = self._dataset.take([row], columns=[self._column]).combine_chunks().to_batches()[0]
        return _leaf(batch, self._column)[0].as_py()


def _leaf(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name in batch.schema.names:
        return batch.column(name)
    outer, _, inner = name.partition(".")
    return pc.struct_field(batch.column(outer), inner)
