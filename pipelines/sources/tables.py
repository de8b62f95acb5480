"""Parquet files and Lance tables as sources: a column of encoded bytes, or a column of paths.

A cell of bytes is an asset with container `parquet` or `lance`, its row number as offset, and `COLUMN[ROW]` as member;
`RowReader` (pipelines/sources/cells.py) reads it back. A path is an asset of its own, as if a file list had named it.
Listing reads no cell of bytes, so size and, without a hint, media type stay unknown until processing.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.sources.kinds import IMAGE, VIDEO, extension
from pipelines.sources.rows import BATCH_ROWS, AssetRows, ListingOptions, Tally, printable
from vfm_ops.errors import UsageError

_BYTES_NAMES = (
    "image",
    "images",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "video",
    "mp4",
    "bytes",
    "content",
    "data",
    "media",
)
_PATH_NAMES = (
    "uri",
    "url",
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_path",
    "video_path",
)


@dataclass(frozen=True)
class TableColumn:
    """The column that holds the media. path_column: beside bytes, the names that tell their type."""

    name: str
    holds: str  # 'bytes' or 'paths'
    path_column: str | None = None
    media_type: str | None = None


@dataclass(frozen=True)
class PathRow:
    """A path found in a table, with the annotations of its row."""

    path: str
    caption: str | None
    label: str | None


def media_column(schema: pa.Schema, wanted: str | None, uri: str) -> TableColumn | None:
    """The column of encoded bytes or of paths: `wanted`, or the first that its type and name give away.

    None when there is none. UsageError when `wanted` is no such column.
    """
    flat = dict(_leaves(schema))
    if wanted is not None:
        if (found := _column(flat, wanted, schema)) is None:
            raise UsageError(f"{uri} has no column {wanted!r} of bytes or text; it has {', '.join(flat) or 'none'}")
        return found
    for name, type_ in flat.items():
        leaf = name.split(".")[0].lower()
        if _is_bytes(type_) and (leaf in _BYTES_NAMES or _hint(schema, name)):
            return _column(flat, name, schema)
    for name, type_ in flat.items():
        if _is_text(type_) and name.split(".")[-1].lower() in _PATH_NAMES:
            return _column(flat, name, schema)
    return None


def list_parquet(
    file: Any, uri: str, etag: str, options: ListingOptions, tally: Tally
) -> Iterator[pa.RecordBatch | list[PathRow]]:
    """Streams a parquet file's assets: batches of rows with bytes, or lists of paths for the caller to look up.

    file: what pyarrow.parquet opens. A damaged file, or one without a media column, is reported or counted in `tally`.
    """
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        column = media_column(parquet.schema_arrow, options.column, uri)
        if column is not None and column.holds == "bytes" and _all_null(parquet, column.name):
            column = TableColumn(column.path_column, "paths") if column.path_column else column
        if column is None:
            tally.skip("table without a column of media")
            return

        def read(columns: list[str]) -> Iterator[pa.RecordBatch]:
            if columns:
                return parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns)
            return _count_batches(parquet.metadata.num_rows)

        yield from list_table(read, parquet.schema_arrow, column, "parquet", uri, etag, options, tally)
    except pa.ArrowException as e:
        tally.problem(uri, f"is no readable parquet file: {str(e).split(chr(10))[0]}")


def list_table(
    read: Callable[[list[str]], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
    column: TableColumn,
    container: str,
    uri: str,
    etag: str,
    options: ListingOptions,
    tally: Tally,
) -> Iterator[pa.RecordBatch | list[PathRow]]:
    """Streams the assets of any table. read: batches of the named columns, of all rows in order; of no column, bare rows."""
    names = dict(_leaves(schema))
    for wanted in (options.caption_column, options.label_column):
        if wanted is not None and wanted not in names:
            raise UsageError(f"{uri} has no column {wanted!r}; it has {', '.join(names)}")
    path_name = column.name if column.holds == "paths" else column.path_column
    needed = [n for n in dict.fromkeys((path_name, options.caption_column, options.label_column)) if n]
    base = 0
    for batch in read(needed):
        paths, captions, labels = (
            _values(batch, name) for name in (path_name, options.caption_column, options.label_column)
        )
        if column.holds == "paths":
            found = [PathRow(str(p), c, l) for p, c, l in zip(paths, captions, labels) if p]
            tally.skip("empty path", batch.num_rows - len(found))
            yield found
        else:
            yield _byte_rows(base, column, container, uri, etag, paths, captions, labels)
        base += batch.num_rows


def resolve_row_path(path: str, table_uri: str) -> str:
    """A path found in a table or list, relative to the place where that lies."""
    if "://" in path or path.startswith("/"):
        return path
    folder = table_uri.rpartition("/")[0]
    return f"{folder}/{posixpath.normpath(path)}" if "://" in folder else posixpath.normpath(f"{folder}/{path}")


def _byte_rows(
    base: int,
    column: TableColumn,
    container: str,
    uri: str,
    etag: str,
    paths: list[str | None],
    captions: list[str | None],
    labels: list[str | None],
) -> pa.RecordBatch:
    rows = AssetRows()
    for row, (path, caption, label) in enumerate(zip(paths, captions, labels), start=base):
        kind = _type_of_path(path) or column.media_type
        member = f"{printable(column.name)}[{row}]"
        rows.add(
            uri,
            kind,
            None,
            f"{etag}@{row}",
            member=member,
            container=container,
            offset=row,
            caption=caption,
            label=label,
        )
    return rows.take()


def _type_of_path(path: str | None) -> str | None:
    ext = extension(posixpath.basename(path)) if path else ""
    return "image" if ext in IMAGE else "video" if ext in VIDEO else None


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Columns by name; the fields of a struct, such as a dataset's {bytes, path}, as `struct.field`."""
    for f in schema:
        if pa.types.is_struct(f.type):
            for inner in f.type:
                yield f"{f.name}.{inner.name}", inner.type
        else:
            yield f.name, f.type


def _column(flat: dict[str, pa.DataType], name: str, schema: pa.Schema) -> TableColumn | None:
    if name not in flat:
        nested = [n for n in (f"{name}.bytes", f"{name}.path") if n in flat]
        return _column(flat, nested[0], schema) if nested else None
    if _is_text(flat[name]):
        return TableColumn(name, "paths")
    if not _is_bytes(flat[name]):
        return None
    beside = f"{name.rpartition('.')[0]}.path"
    return TableColumn(name, "bytes", beside if beside in flat else None, _hint(schema, name) or _hint_by_name(name))


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _hint(schema: pa.Schema, name: str) -> str | None:
    """Media type that the `datasets` library wrote into the schema's metadata: {"info": {"features": {NAME: {"_type"}}}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {"Image": "image", "Video": "video"}.get(features[name.split(".")[0]]["_type"])
    except (KeyError, TypeError, ValueError):
        return None


def _hint_by_name(name: str) -> str | None:
    leaf = name.split(".")[0].lower()
    if leaf in ("image", "images", "img") or leaf in IMAGE:
        return "image"
    return "video" if leaf == "video" or leaf in VIDEO else None


def _values(batch: pa.RecordBatch, name: str | None) -> list[str | None]:
    if name is None:
        return [None] * batch.num_rows
    outer, _, inner = name.partition(".")
    if inner and name not in batch.schema.names:
        column = pc.struct_field(batch.column(outer), inner)
    else:
        column = batch.column(name)
    return [None if v is None else str(v) for v in column.to_pylist()]


def _all_null(parquet: pq.ParquetFile, name: str) -> bool:
    metadata = parquet.metadata
    index = next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == name), None)
    if index is None or not metadata.num_rows:
        return False
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(index).statistics
        if statistics is None or statistics.null_count != metadata.row_group(group).num_rows:
            return False
    return True


def _count_batches(rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, BATCH_ROWS):
        nulls = pa.nulls(min(BATCH_ROWS, rows - start))
        yield pa.RecordBatch.from_arrays([nulls], names=["row"])
