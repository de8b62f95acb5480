"""A lake: a directory or object-store prefix of Lance tables, and the only way in and out of them.

Writers make fragments anywhere (`write_fragments`), one driver commits them (`commit`). A commit is idempotent: trying it
again after an unclear failure never doubles rows.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.lake.schema import FORMAT_VERSION, SCHEMAS
from vfm_ops.errors import UsageError, VfmError

# Lance warns about fork at import; nothing here forks.
warnings.filterwarnings("ignore", message="lance is not fork-safe")
import lance  # noqa: E402
from lance.fragment import FragmentMetadata  # noqa: E402

MARKER = "lake.json"


class Lake:
    """An open lake. Cheap to make and to send to a worker: it holds the root only."""

    def __init__(self, root: str) -> None:
        self.root = root

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: str | os.PathLike) -> Lake:
        """Opens an existing lake. UsageError when there is none, or when a newer version of this package wrote it."""
        root = _normalise(root)
        fs, path = filesystem(root)
        marker = f"{path}/{MARKER}"
        try:
            with fs.open_input_file(marker) as f:
                version = json.loads(f.read())["format"]
        except FileNotFoundError:
            raise UsageError(
                f"{root} is not a lake: it has no {MARKER}. Create one with: vfm ingest SRC --lake {root}"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f'{root}/{MARKER} is damaged; restore it, or write {{"format": {FORMAT_VERSION}}} into it'
            ) from None
        except OSError as e:
            raise UsageError(f"cannot read the lake {root}: {_reason(e)}") from e
        if version > FORMAT_VERSION:
            raise UsageError(
                f"{root} has lake format {version}; this version reads up to {FORMAT_VERSION}: upgrade vfm-pipelines"
            )
        return cls(root)

    @classmethod
    def create(cls, root: str | os.PathLike) -> Lake:
        """Opens a lake, or makes one where nothing is. UsageError where something else already is."""
        root = _normalise(root)
        fs, path = filesystem(root)
        try:
            if fs.get_file_info(f"{path}/{MARKER}").type != pafs.FileType.NotFound:
                return cls.open(root)
            info = fs.get_file_info(path)
            if info.type == pafs.FileType.File:
                raise UsageError(f"{root} is a file, not a lake: name a new or empty directory")
            if info.type == pafs.FileType.Directory and fs.get_file_info(pafs.FileSelector(path)):
                raise UsageError(f"{root} holds other files and is not a lake: name a new or empty directory")
            fs.create_dir(path, recursive=True)
            with fs.open_output_stream(f"{path}/{MARKER}") as f:
                f.write(json.dumps({"format": FORMAT_VERSION, "product": "vfm-pipelines"}).encode())
        except OSError as e:
            raise UsageError(f"cannot create a lake at {root}: {_reason(e)}") from e
        return cls(root)

    def uri(self, table: str) -> str:
        """Where a table lies."""
        return f"{self.root}/{table}.lance"

    # -- reading ---------------------------------------------------------------------------------------------------

    def dataset(self, table: str, version: int | str | None = None) -> Any | None:
        """The Lance dataset of a table at its newest (or a tagged) version; None while nothing was ever written to it."""
        try:
            return lance.dataset(self.uri(table), version=version)
        except (ValueError, FileNotFoundError) as e:
            if "not found" in str(e).lower() or "does not exist" in str(e).lower():
                return None
            raise VfmError(f"cannot read table {table} of {self.root}: {_reason(e)}") from e

    def table(self, table: str, version: int | str | None = None) -> Any:
        """As `dataset`, of a table that must be there."""
        ds = self.dataset(table, version)
        if ds is None:
            raise VfmError(f"table {table} of {self.root} is gone: restore it, or make the lake anew")
        return ds

    def schema(self, table: str) -> pa.Schema:
        """Schema of a table as it is now: that of SCHEMAS, plus columns that came later."""
        ds = self.dataset(table)
        return SCHEMAS[table] if ds is None else ds.schema

    def scan(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """Streams record batches of a table. UsageError when `filter` is not SQL over its columns."""
        ds = self.dataset(table)
        if ds is None:
            return
        try:
            yield from ds.scanner(columns=columns, filter=filter, **options).to_batches()
        except (ValueError, OSError) as e:
            if filter and ("filter" in str(e).lower() or "schema error" in str(e).lower() or "sql" in str(e).lower()):
                raise UsageError(f"the filter {filter!r} does not fit table {table}: {_reason(e)}") from e
            raise

    def read(self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any) -> pa.Table:
        """A table, or part of one, in memory: for small tables and narrow filters."""
        batches = list(self.scan(table, columns, filter, **options))
        if batches:
            return pa.Table.from_batches(batches)
        schema = self.schema(table)
        return (pa.schema([schema.field(c) for c in columns if c in schema.names]) if columns else schema).empty_table()

    def take(self, table: str, row_ids: list[int], version: int, columns: list[str] | None = None) -> pa.Table:
        """Rows by the `_rowid`s that a scan of that version gave, in that order."""
        return self.table(table, version)._take_rows(row_ids, columns=columns)

    def count(self, table: str, filter: str | None = None) -> int:
        """Number of rows."""
        ds = self.dataset(table)
        return 0 if ds is None else ds.count_rows(filter=filter)

    # -- writing ---------------------------------------------------------------------------------------------------

    def ensure(self, table: str, extra: Iterable[pa.Field] = ()) -> None:
        """Makes a table exist with its columns and `extra` ones (all null where rows exist: only metadata is written)."""
        ds = self.dataset(table)
        extra = list(extra)
        if ds is None:
            schema = pa.schema([*SCHEMAS[table], *extra])
            try:
                lance.write_dataset(schema.empty_table(), self.uri(table), schema=schema, mode="create")
            except OSError as e:
                if self.dataset(table) is None:
                    raise VfmError(f"cannot create table {table} in {self.root}: {_reason(e)}") from e
            ds = self.table(table)
        missing = [f for f in extra if f.name not in ds.schema.names]
        for field in extra:
            if field not in missing and ds.schema.field(field.name).type != field.type:
                raise UsageError(
                    f"column {field.name} of {table} is {ds.schema.field(field.name).type}, not {field.type}: "
                    "the model changed; use another lake, or drop the column first"
                )
        if missing:
            ds.add_columns(pa.schema(missing))

    def write_fragments(self, table: str, data: pa.Table | pa.RecordBatchReader) -> list[str]:
        """Writes rows as data files, visible to nobody until committed. Returns one JSON string per fragment.

        Runs on any worker; the table must exist (`ensure`).
        """
        return [json.dumps(f.to_json()) for f in lance.fragment.write_fragments(data, self.uri(table), mode="append")]

    def commit(self, table: str, fragments: list[str]) -> None:
        """Appends fragments to a table, in one new version. Idempotent: fragments that are already in it are left out."""
        if not fragments:
            return
        pending = [FragmentMetadata.from_json(f) for f in fragments]
        for attempt in (1, 2, 3):
            ds = self.table(table)
            if attempt > 1:
                present = {d.path for f in ds.get_fragments() for d in f.data_files()}
                pending = [f for f in pending if f.files[0].path not in present]
                if not pending:
                    return
            try:
                lance.LanceDataset.commit(ds.uri, lance.LanceOperation.Append(pending), read_version=ds.version)
                return
            except OSError as e:
                if attempt == 3:
                    raise VfmError(f"cannot commit to table {table} of {self.root}: {_reason(e)}") from e

    def append(self, table: str, rows: pa.Table) -> None:
        """Appends a small table in one commit."""
        if rows.num_rows:
            self.ensure(table)
            self.commit(
                table, self.write_fragments(table, rows.select(rows.schema.names).cast(_narrow(SCHEMAS[table], rows)))
            )

    def delete(self, table: str, column: str, values: Iterable[str], extra: str | None = None) -> int:
        """Deletes rows whose string `column` is one of `values` (and `extra` SQL holds). Returns how many."""
        if self.dataset(table) is None:
            return 0
        deleted, todo = 0, list(values)
        for start in range(0, len(todo), 2000):
            quoted = ", ".join("'" + v.replace("'", "''") + "'" for v in todo[start : start + 2000])
            predicate = f"{column} IN ({quoted})" + (f" AND ({extra})" if extra else "")
            deleted += self.table(table).delete(predicate)["num_deleted_rows"]
        return deleted

    def update(self, table: str, values: dict[str, str], where: str) -> int:
        """Sets columns to SQL expressions in the rows where `where` holds. Returns how many rows."""
        ds = self.dataset(table)
        return 0 if ds is None else ds.update(values, where=where)["num_rows_updated"]

    def fragments_without(self, table: str, column: str) -> list[int]:
        """Ids of the fragments that hold no values of a column at all; only metadata is read."""
        ds = self.dataset(table)
        if ds is None or column not in ds.schema.names:
            return []
        wanted = next(f.id() for f in ds.lance_schema.fields() if f.name() == column)
        return [f.fragment_id for f in ds.get_fragments() if all(wanted not in d.fields for d in f.data_files())]

    def scan_fragment(
        self, table: str, fragment_id: int, columns: list[str], batch_size: int
    ) -> Iterator[pa.RecordBatch]:
        """Streams the rows of one fragment with their `_rowid`."""
        yield from (
            self.table(table)
            .get_fragment(fragment_id)
            .to_batches(columns=columns, with_row_id=True, batch_size=batch_size)
        )

    def write_columns(self, table: str, fragment_id: int, rows: pa.Table) -> str:
        """Writes columns of one fragment as a data file of their own; no other column is rewritten.

        rows: `_rowid` and the new values. Returns what `commit_columns` takes; invisible until then. Runs on any worker.
        """
        fragment, modified = self.table(table).get_fragment(fragment_id).update_columns(rows)
        return json.dumps({"fragment": fragment.to_json(), "fields": modified})

    def commit_columns(self, table: str, written: str) -> None:
        """Makes the columns of one fragment visible. VfmError when that fragment was rewritten meanwhile."""
        change = json.loads(written)
        fragment = FragmentMetadata.from_json(json.dumps(change["fragment"]))
        ds = self.table(table)
        operation = lance.LanceOperation.Update(updated_fragments=[fragment], fields_modified=change["fields"])
        try:
            lance.LanceDataset.commit(ds.uri, operation, read_version=ds.version)
        except OSError as e:
            raise VfmError(f"cannot commit columns of table {table} of {self.root}: {_reason(e)}") from e

    def check_space(self, need_bytes: int = 64 << 20) -> None:
        """UsageError when a local lake's disk has less than `need_bytes` left."""
        if "://" in self.root:
            return
        stat = os.statvfs(self.root)
        if stat.f_bavail * stat.f_frsize < need_bytes:
            raise UsageError(
                f"the disk that holds {self.root} is full ({stat.f_bavail * stat.f_frsize >> 20} MB left): free some space"
            )


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow filesystem and path of a local path or an object-store URL. UsageError for a scheme nobody knows."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    if uri.startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")):
        return pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=False), uri[len("s3://") :]
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"cannot open {uri}: {_reason(e)}") from e


def _normalise(root: str | os.PathLike) -> str:
    root = os.fspath(root).rstrip("/")
    if not root:
        raise UsageError("the lake's name is empty: pass --lake DIRECTORY or --lake s3://bucket/prefix")
    return root if "://" in root else str(Path(root).expanduser().absolute())


def _narrow(schema: pa.Schema, rows: pa.Table) -> pa.Schema:
    return pa.schema([schema.field(name) for name in rows.schema.names])


def _reason(e: BaseException) -> str:
    """The first sentence of a library's error, without its source positions."""
    return str(e).split("\n")[0].split(", /")[0][:300]
