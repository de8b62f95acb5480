"""A lake's tables for other engines (DuckDB, Polars, pandas), as a stream of Arrow batches in types that they all read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vfm_ops.errors import UsageError


class Readable(Protocol):
    """What is read from: `pipelines.lake.lake.Lake`, which shows its tables and so can't be imported here."""

    root: str

    def tables(self) -> list[str]: ...

    def dataset(self, table: str, version: int | str | None = None) -> Any | None: ...

    def schema(self, table: str) -> pa.Schema: ...

    def scan(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]: ...

    def read(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> pa.Table: ...

    def take(self, table: str, row_ids: list[int], version: int, columns: list[str] | None = None) -> pa.Table: ...

    def count(self, table: str, filter: str | None = None) -> int: ...


def arrow_reader(
    lake: Readable, table: str, columns: list[str] | None = None, filter: str | None = None
) -> pa.RecordBatchReader:
    """Streams a table with its float16 vectors as float32: DuckDB refuses a table that has a float16 column at all.

    Args:
        lake: An open lake.
        table: One of its tables, such as `frames`.
        columns: Names of those to read; None reads all. Leave `jpeg` out where it isn't needed: it is most of the bytes.
        filter: SQL over the table's columns, answered by Lance before anything leaves it.

    Returns:
        A reader to be read once; nothing is held but a batch. It has no rows where the table was never written.

    Raises:
        UsageError: There is no such table or column, or the filter does not fit it.

    Example:
        >>> import duckdb
        >>> frames = arrow_reader(Lake.open("lake"), "frames", ["asset_id", "quality"])
        >>> duckdb.sql("SELECT asset_id, avg(quality.sharpness) FROM frames GROUP BY asset_id")
    """
    stored = schema_with(lake, table, columns or ())
    fields = stored if columns is None else [stored.field(name) for name in columns]
    schema = pa.schema([pa.field(f.name, _widened(f.type), f.nullable, f.metadata) for f in fields])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in lake.scan(table, schema.names, filter):
            yield batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def schema_with(lake: Readable, table: str, columns: Iterable[str]) -> pa.Schema:
    """Schema of a table. UsageError when there is no such table, or it lacks one of `columns`."""
    try:
        stored = lake.schema(table)
    except KeyError:
        raise UsageError(f"{lake.root} has no table {table!r}") from None
    missing = [name for name in columns if name not in stored.names]
    if missing:
        raise UsageError(f"table {table} has no column {missing[0]!r}; there are {', '.join(stored.names)}")
    return stored


def row_hashes(*columns: pa.Array) -> np.ndarray:
    """Python's hashes of values, of several columns of their tuples, int64 (N,): only this process compares them."""
    values = columns[0].to_pylist() if len(columns) == 1 else zip(*(c.to_pylist() for c in columns))
    return np.fromiter(map(hash, values), np.int64, len(columns[0]))


def rows_hashed(lake: Readable, table: str, columns: list[str], hashes: np.ndarray) -> set[tuple[str, ...]]:
    """The different rows of a table's columns whose `row_hashes` are among these."""
    found: set[tuple[str, ...]] = set()
    for batch in lake.scan(table, columns) if len(hashes) else ():
        rows = batch.filter(pa.array(np.isin(row_hashes(*batch.columns), hashes)))
        found.update(zip(*(c.to_pylist() for c in rows.columns)))
    return found


def _widened(type: pa.DataType) -> pa.DataType:
    """float32 in place of float16, at any depth of lists."""
    if pa.types.is_float16(type):
        return pa.float32()
    if pa.types.is_fixed_size_list(type):
        return pa.list_(_widened(type.value_type), type.list_size)
    if pa.types.is_list(type):
        return pa.list_(_widened(type.value_type))
    return type
