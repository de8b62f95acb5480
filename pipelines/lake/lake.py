"""A lake: a directory or object-store prefix of Lance tables, and the only way in and out of them.

Writers make fragments anywhere (`write_fragments`), one driver commits them (`commit`). Every write passes `attempt`, which
tries again while a store fails, and every change of a table passes `change`, which fences: what a run does after it lost its
lease (see `lease` and `fence`) fails. Each change is idempotent: trying it again after an unclear answer doubles nothing.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.lake.access import refusal
from pipelines.lake.annotations import Annotated
from pipelines.lake.filters import bounded, filter_errors
from pipelines.lake.schema import FORMAT_VERSION, SCHEMAS, UNLEASED, wants_value
from pipelines.lake.sql import one_of
from pipelines.lake.tables import Tables
from vfm_ops.errors import UsageError, VfmError

# Lance warns about fork at import; nothing here forks.
warnings.filterwarnings("ignore", message="lance is not fork-safe")
import lance  # noqa: E402
from lance.fragment import FragmentMetadata  # noqa: E402

MARKER = "lake.json"
# Pauses between tries of one write, in seconds: an object store may refuse for half a minute; a disk that fails once is asked
# again at once, since another writer of the same machine may have come first.
# Bytes of indices' partitions (those used last) and of files' metadata that a caching lake keeps.
INDICES_CACHED, METADATA_CACHED = 2 << 30, 64 << 20
READ_AHEAD = 128 << 20  # bytes; left alone, Lance reads up to 2 GB that nobody has asked for yet
STORE_WAITS_S, DISK_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0), (0.0, 0.0)

T = TypeVar("T")


class Fence(Protocol):
    """What a `Lake` asks of the lease that is held (`pipelines.lake.lease.Lease`)."""

    epoch: int

    def admit(self, table: str, dataset: Any) -> Any:
        """The handle to change a table by; LostLease when another run holds the lake."""


class StoreError(VfmError):
    """The lake's store failed for longer than it is waited for. Nothing is wrong with what was to be written."""


class Lake(Annotated, Tables):
    """An open lake. Cheap to make and to send to a worker: the lease that a driver holds stays behind, its epoch goes along.

    Its tables are attributes: `lake.frames` shows the first rows, and goes to pandas, DuckDB or PyTorch (see `Table`).
    """

    _session: Any = None

    def __init__(self, root: str) -> None:
        self.root = root
        self.lease: Fence | None = None
        self._sent_epoch = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "lease": None, "_sent_epoch": self.epoch}

    @property
    def epoch(self) -> int:
        """How often the lake was taken from a run that did not give it back, as the holder of the lease knows it."""
        return self.lease.epoch if self.lease else self._sent_epoch

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: str | os.PathLike) -> Lake:
        """Opens an existing lake. UsageError when there is none, or when a newer version of this package wrote it."""
        root = _normalise(root)
        lake = cls(root)
        try:
            version = json.loads(lake._marker())["format"]
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
        return lake

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
            inside = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
            if any(not f.base_name.startswith(f"{MARKER}.") for f in inside):  # a kill may leave a marker half written
                raise UsageError(f"{root} holds other files and is not a lake: name a new or empty directory")
            fs.create_dir(path, recursive=True)
            cls(root).put_format(FORMAT_VERSION)
        except OSError as e:
            raise UsageError(f"cannot create a lake at {root}: {_reason(e)}") from e
        return cls(root)

    @property
    def format(self) -> int:
        """Version of the layout that the lake is in, as its marker says."""
        return int(json.loads(self._marker())["format"])

    def _marker(self) -> bytes:
        """What the marker holds. FileNotFoundError, or OSError once the store has failed for longer than it is waited for."""
        fs, path = filesystem(self.root)
        for wait in (*self._waits(), None):
            try:
                with fs.open_input_file(f"{path}/{MARKER}") as f:
                    return bytes(f.read())
            except FileNotFoundError:
                raise
            except OSError:
                if wait is None or "://" not in self.root:
                    raise
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def put_format(self, version: int) -> None:
        """Says that the lake is in a layout now: the last step of a migration to it."""
        self.put_file(MARKER, json.dumps({"format": version, "product": "vfm-pipelines"}).encode())

    def uri(self, table: str) -> str:
        """Where a table lies."""
        return f"{self.root}/{table}.lance"

    def tables(self) -> list[str]:
        """Names of the tables that were ever written to, those of SCHEMAS first and in its order."""
        fs, path = filesystem(self.root)
        found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        names = {f.base_name.removesuffix(".lance") for f in found if f.base_name.endswith(".lance")}
        return [name for name in SCHEMAS if name in names] + sorted(names - SCHEMAS.keys())

    # -- reading ---------------------------------------------------------------------------------------------------

    def caching(self) -> Lake:
        """The same lake, for reads that come again and again, as searches do: what one of them has opened of an index stays in
        memory for the next, whichever thread that is in. An index that is read anew each time may cost thirty times the search.
        """
        lake = Lake(self.root)
        lake._session = _session()
        return lake

    def dataset(self, table: str, version: int | str | None = None) -> Any | None:
        """The Lance dataset of a table at its newest (or a tagged) version; None while nothing was ever written to it."""
        for wait in (*self._waits(), None):
            try:
                return lance.dataset(self.uri(table), version=version, session=self._session)
            except (ValueError, OSError) as e:
                if "not found" in str(e).lower() or "does not exist" in str(e).lower():
                    return None
                if wait is None or isinstance(e, ValueError):
                    raise StoreError(f"cannot read table {table} of {self.root}: {_reason(e)}") from e
                time.sleep(wait)
        return None

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
        with filter_errors(table, filter):
            options = {"io_buffer_size": READ_AHEAD, **options}
            yield from ds.scanner(columns=columns, filter=filter and bounded(filter), **options).to_batches()

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
        """Number of rows. UsageError when `filter` is not SQL over the table's columns."""
        ds = self.dataset(table)
        with filter_errors(table, filter):
            return 0 if ds is None else ds.count_rows(filter=filter and bounded(filter))

    # -- writing ---------------------------------------------------------------------------------------------------

    def attempt(self, what: str, action: Callable[[int], T]) -> T:
        """Every write passes here, of a table or of a file: tried again, with growing pauses, while the store fails.

        action: called with the number of earlier tries, which may have been applied although they failed. StoreError when
        the last try fails, too.
        """
        for tries, wait in enumerate((*self._waits(), None)):
            try:
                return action(tries)
            except OSError as e:
                if wait is None or ("://" not in self.root and refusal(e)):  # a disk does not change its mind
                    raise StoreError(f"cannot {what} of {self.root}: {_reason(e)}") from e
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def change(
        self, table: str, what: str, apply: Callable[[Any], T], landed: Callable[[Any], bool] | None = None
    ) -> T | None:
        """The one door to a table: `apply` gets a handle that carries the epoch of the lease, and commits from it.

        A takeover makes commits from older handles fail, so a run that was paused between the check and its commit changes
        nothing. landed: whether a try that failed was applied after all (then None is returned); without it, applying twice
        must be harmless. Without a lease the table's own epoch is taken as it is. Raises LostLease, StoreError.
        """

        def once(tries: int) -> T | None:
            dataset = self._fenced(table)
            if tries and landed is not None and landed(dataset):
                return None
            try:
                return apply(dataset)
            except OSError:
                self._fenced(table)  # says LostLease where that is why it failed
                raise

        return self.attempt(f"{what} table {table}", once)

    def _fenced(self, table: str) -> Any:
        dataset = self.table(table)
        # The lease fences itself: each of its updates says what it expects.
        if self.lease is None or table in ("lease", *UNLEASED):
            return dataset
        return self.lease.admit(table, dataset)

    def ensure(self, table: str, extra: Iterable[pa.Field] = ()) -> None:
        """Makes a table exist with its columns and `extra` ones (all null where rows exist: only metadata is written)."""
        own = SCHEMAS.get(table, pa.schema([]))
        fields = pa.schema([*own, *(f for f in extra if f.name not in own.names)])
        ds = self.dataset(table)
        if ds is None:
            self.create_table(table, fields.empty_table())
            ds = self.table(table)
        for field in fields:
            if field.name in ds.schema.names and ds.schema.field(field.name).type != field.type:
                raise UsageError(
                    f"column {field.name} of {table} is {ds.schema.field(field.name).type}, not {field.type}: "
                    "the model changed; use another lake, or drop the column first"
                )

        def missing(dataset: Any) -> list[pa.Field]:
            return [f for f in fields if f.name not in dataset.schema.names]

        def add(dataset: Any) -> None:
            dataset.add_columns(pa.schema(missing(dataset)))

        if missing(ds):  # an older version's table, or a model that is new
            self.change(table, "add columns to", add, landed=lambda dataset: not missing(dataset))

    def create_table(self, table: str, rows: pa.Table) -> None:
        """Makes a table with its first rows, in one step. Where another process was faster, its table stays as it is."""

        def once(tries: int) -> None:
            try:
                lance.write_dataset(rows, self.uri(table), schema=rows.schema, mode="create")
            except OSError:
                if self.dataset(table) is None:
                    raise

        self.attempt(f"create table {table}", once)

    def write_fragments(self, table: str, data: pa.Table | pa.RecordBatchReader) -> list[str]:
        """Writes rows as data files, visible to nobody until committed. Returns one JSON string per fragment.

        Runs on any worker; the table must exist (`ensure`).
        """

        def once(tries: int) -> list[Any]:
            if tries and isinstance(data, pa.RecordBatchReader):  # half read: what it gave is gone
                raise StoreError(f"cannot write rows of table {table} of {self.root}: the store failed in the middle")
            return lance.fragment.write_fragments(data, self.uri(table), mode="append")

        return [json.dumps(f.to_json()) for f in self.attempt(f"write rows of table {table}", once)]

    def have_files(self, table: str, fragments: list[str]) -> bool:
        """Whether every data file of written fragments is still there: maintenance removes those that wait for a week."""
        fs, root = filesystem(self.uri(table))
        paths = [f"{root}/data/{file.path}" for f in fragments for file in FragmentMetadata.from_json(f).files]
        return all(info.type == pafs.FileType.File for info in fs.get_file_info(paths)) if paths else True

    def commit(self, table: str, fragments: list[str]) -> None:
        """Appends fragments to a table, in one new version. Idempotent: fragments that are already in it are left out.

        VfmError when a data file is gone: a version that refers to it could not be read, nor any later one.
        """
        if not fragments:
            return
        if not self.have_files(table, fragments):
            raise VfmError(
                f"files that were written for table {table} of {self.root} are gone: run the same command again"
            )
        new = [FragmentMetadata.from_json(f) for f in fragments]

        def landed(dataset: Any) -> bool:
            present = {d.path for f in dataset.get_fragments() for d in f.data_files()}
            return all(f.files[0].path in present for f in new)

        self.change(table, "commit to", lambda ds: commit(ds, lance.LanceOperation.Append(new)), landed)

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
            predicate = one_of(column, todo[start : start + 2000]) + (f" AND ({extra})" if extra else "")
            done = self.change(table, "delete from", partial(_delete, where=predicate))
            deleted += done["num_deleted_rows"] if done else 0
        return deleted

    def update(self, table: str, values: dict[str, str], where: str) -> int:
        """Sets columns to SQL expressions in the rows where `where` holds. Returns how many rows."""
        if self.dataset(table) is None:
            return 0
        done = self.change(table, "update", lambda ds: ds.update(values, where=where))
        return done["num_rows_updated"] if done else 0

    def unfilled(self, table: str, column: str) -> dict[int, int]:
        """Fragments with rows that want a value of a model's column (`wants_value`), with their number: {fragment id: rows}.

        It asks for values. Which files hold the column says nothing: compaction, and every update, write nulls down.
        """
        ds = self.dataset(table)
        if ds is None or column not in ds.schema.names:
            return {}
        return rows_by_fragment(ds, wants_value(ds.schema, column))

    def scan_fragment(
        self, table: str, fragment_id: int, columns: list[str], batch_size: int, where: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Streams the rows of one fragment (those where `where` holds) with their `_rowid`."""
        fragment = self.table(table).get_fragment(fragment_id)
        yield from fragment.to_batches(columns=columns, filter=where, with_row_id=True, batch_size=batch_size)

    def write_columns(self, table: str, fragment_id: int, rows: pa.Table) -> str:
        """Writes columns of one fragment as a data file of their own; no other column is rewritten.

        rows: `_rowid` and the new values; rows that are not named keep theirs. Returns what `commit_columns` takes; invisible
        until then. Runs on any worker.
        """

        def once(tries: int) -> str:
            dataset = self.table(table)
            fragment, modified = dataset.get_fragment(fragment_id).update_columns(rows)
            return json.dumps({"version": dataset.version, "fragment": fragment.to_json(), "fields": modified})

        return self.attempt(f"write columns of table {table}", once)

    def commit_columns(self, table: str, written: str) -> None:
        """Makes the columns of one fragment visible. StoreError when that fragment was rewritten meanwhile."""
        change = json.loads(written)
        fragment = FragmentMetadata.from_json(json.dumps(change["fragment"]))
        files = {f.path for f in fragment.files}
        operation = lance.LanceOperation.Update(updated_fragments=[fragment], fields_modified=change["fields"])

        def landed(dataset: Any) -> bool:
            now = dataset.get_fragment(fragment.id)
            return now is not None and files <= {f.path for f in now.data_files()}

        # From the version that was read: had the fragment lost rows since, committing on top would bring them back.
        self.change(table, "commit columns of", lambda ds: commit(ds, operation, change["version"]), landed)

    # -- files beside the tables -----------------------------------------------------------------------------------

    def put_file(self, name: str, data: bytes) -> None:
        """Writes a file of the lake, whole or not at all; `name` may have folders. Not fenced: put the epoch in the name."""
        fs, root = filesystem(self.root)
        path = f"{root}/{name}"

        def once(tries: int) -> None:
            fs.create_dir(path.rpartition("/")[0], recursive=True)
            # An object store shows an object when it is complete; a file system shows every byte.
            target = f"{path}.{os.getpid()}.tmp" if isinstance(fs, pafs.LocalFileSystem) else path
            with fs.open_output_stream(target) as file:
                file.write(data)
            if target != path:
                fs.move(target, path)

        self.attempt(f"write {name}", once)

    def get_file(self, name: str) -> bytes | None:
        """A file of the lake; None when it is not there."""
        fs, root = filesystem(self.root)
        try:
            with fs.open_input_file(f"{root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def list_files(self, folder: str) -> list[str]:
        """Names of the files in a folder of the lake, sorted."""
        fs, root = filesystem(self.root)
        found = fs.get_file_info(pafs.FileSelector(f"{root}/{folder}", allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == pafs.FileType.File)

    def remove_file(self, name: str) -> None:
        """Removes a file of the lake where it is."""
        fs, root = filesystem(self.root)

        def once(tries: int) -> None:
            if fs.get_file_info(f"{root}/{name}").type != pafs.FileType.NotFound:
                fs.delete_file(f"{root}/{name}")

        self.attempt(f"remove {name}", once)

    def _waits(self) -> tuple[float, ...]:
        return STORE_WAITS_S if "://" in self.root else DISK_WAITS_S

    def check_space(self, need_bytes: int = 64 << 20) -> None:
        """UsageError when a local lake's disk has less than `need_bytes` left."""
        if "://" in self.root:
            return
        stat = os.statvfs(self.root)
        if stat.f_bavail * stat.f_frsize < need_bytes:
            raise UsageError(
                f"the disk that holds {self.root} is full ({stat.f_bavail * stat.f_frsize >> 20} MB left): free some space"
            )


@cache
def _session() -> Any:
    """What all caching lakes of this process share."""
    return lance.Session(index_cache_size_bytes=INDICES_CACHED, metadata_cache_size_bytes=METADATA_CACHED)


def _delete(dataset: Any, where: str) -> Any:
    return dataset.delete(where)


def rows_by_fragment(dataset: Any, where: str) -> dict[int, int]:
    """Rows that satisfy `where`, by fragment: {fragment id: rows}, without the fragments that have none.

    Not by each fragment's `count_rows`: it keeps Python's lock while it waits for the store, so that no heartbeat would pass.
    """
    counts: Counter[int] = Counter()
    for batch in dataset.scanner(columns=[], filter=where, with_row_address=True).to_batches():
        fragments, rows = np.unique(batch["_rowaddr"].to_numpy() >> 32, return_counts=True)
        counts.update(dict(zip(fragments.tolist(), rows.tolist(), strict=True)))
    return dict(counts)


def commit(dataset: Any, operation: Any, read_version: int | None = None) -> Any:
    """Commits an operation that was prepared at a version of a table, that of the handle unless another is given."""
    return lance.LanceDataset.commit(dataset.uri, operation, read_version=read_version or dataset.version)


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
        raise UsageError("the lake's name is empty: give a directory, or a prefix such as s3://bucket/prefix")
    return root if "://" in root else str(Path(root).expanduser().absolute())


def _narrow(schema: pa.Schema, rows: pa.Table) -> pa.Schema:
    return pa.schema([schema.field(name) for name in rows.schema.names])


def _reason(e: BaseException) -> str:
    """The first sentence of a library's error, without its source positions."""
    return str(e).split("\n")[0].split(", /")[0][:300]
