"""What two states of a lake differ in, table by table and column by column: rows that came and went, values that changed.

A row is known by its key, a value by its hash (`value_hashes`): for each column, both sides are streamed once into sorted
arrays of 24 bytes a row, PART_ROWS rows at the most at a time, and joined. Fragments whose files both states share hold equal
values and are never read, so that a diff over one run costs what that run wrote; only compaction, which rewrites files, makes
it read all. Examples, and vectors that changed, are fetched by their row ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.types as pt

from pipelines.curation.vectors import list_values
from pipelines.lake import SCHEMAS, Lake, filesystem
from pipelines.lake.schema import facts_of
from pipelines.lake.verify import KEYS
from pipelines.reporting.states import before_last_run, find_state
from pipelines.reporting.value_hashes import NULL, combined_hashes, value_hashes
from vfm_ops.curate.kernels import normalised

EXAMPLES = 3
PART_ROWS = 16_000_000  # rows of one side in memory at once: about a gigabyte for both
_BATCH_ROWS, _VECTOR_ROWS = 4096, 4096
# Not compared: who may write, what is done, and which run wrote a row, when; all of which every run changes.
_BOOKKEEPING = ("lease", "ledger", "runs")
_PROVENANCE = ("run_key", "run_id", "attempt", "finished_at")
ROW_KEYS = {t: k for t, k in KEYS.items() if t not in _BOOKKEEPING} | {"selections": ("selection", "frame_id")}

Progress = Callable[[str, str | None], None]


@dataclass
class ColumnDiff:
    """A column of rows that both states have. by: the model or op that fills it, None for the lake's own; was_by: who filled it
    before, where that is another. filled: null before, a value now; emptied: the reverse; changed: another value. status:
    'added' or 'removed' where only one state has the column. cosine: of changed vectors, their least and median."""

    column: str
    by: str | None
    was_by: str | None = None
    status: str | None = None
    filled: int = 0
    emptied: int = 0
    changed: int = 0
    cosine: dict[str, float] | None = None
    examples: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether anything about the column is to be told."""
        return bool(self.filled or self.emptied or self.changed or self.status or self.was_by)


@dataclass
class TableDiff:
    """One table: rows in both states, added and removed, with the keys of three of each, and the columns that differ."""

    table: str
    rows: tuple[int, int] = (0, 0)
    added: int = 0
    removed: int = 0
    added_examples: list[str] = field(default_factory=list)
    removed_examples: list[str] = field(default_factory=list)
    columns: list[ColumnDiff] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.removed or self.columns)


@dataclass
class LakeDiff:
    """old, new: the states in words. tables: that differ. not_compared: tables whose old version is no longer kept."""

    old: str
    new: str
    tables: list[TableDiff] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)


def diff_lake(lake: Lake, old: str | None = None, new: str | None = None, progress: Progress | None = None) -> LakeDiff:
    """Compares two states of a lake.

    Args:
        lake: an open lake.
        old: name of the state to compare with, as `states.find_state` takes it; before the last recorded run by default.
        new: name of the other; the newest by default.
        progress: called with (table, column or None) before each is read.

    Returns:
        A LakeDiff: the tables that differ, by column.

    Raises:
        UsageError: for a name that stands for no state, and for a state that maintenance has removed.

    Example:
        diff_lake(Lake.open("lake"), "2026-01-31T09:00").tables
    """
    tables = tables_of(lake)
    before = find_state(lake, old if old is not None else before_last_run(lake), tables)
    after = find_state(lake, new, tables)
    gone = {*before.gone, *after.gone}
    found = LakeDiff(before.name, after.name, not_compared=sorted(gone))
    for table in tables:
        versions = before.versions.get(table), after.versions.get(table)
        if table not in gone and versions[0] != versions[1]:
            key = row_key(lake, table)
            old_side, new_side = (Side(lake, table, version, key) for version in versions)
            different = diff_table(old_side, new_side, progress)
            found.tables += [different] if different.differs else []
    return found


def tables_of(lake: Lake) -> list[str]:
    """The tables that are compared: those that every lake has, then those that are in the lake beside them, such as an op's."""
    fs, root = filesystem(lake.root)
    inside = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    names = sorted(info.base_name.removesuffix(".lance") for info in inside if info.base_name.endswith(".lance"))
    return [*(t for t in SCHEMAS if t in ROW_KEYS), *(name for name in names if name not in SCHEMAS)]


def row_key(lake: Lake, table: str) -> tuple[str, ...]:
    """What names a row of a table: of one that not every lake has, the columns that are never null. A key may name several."""
    if table in ROW_KEYS:
        return ROW_KEYS[table]
    schema = lake.table(table).schema
    return tuple(field.name for field in schema if not field.nullable and field.name not in _PROVENANCE)


class Side:
    """One table of one state; empty where the table was not there. key: columns that name a row."""

    def __init__(self, lake: Lake, table: str, version: int | None, key: tuple[str, ...]) -> None:
        self.lake, self.name, self.version = lake, table, version
        self.dataset: Any = None if version is None else lake.table(table, version)
        self.schema = pa.schema([]) if self.dataset is None else self.dataset.schema
        self.key = list(key)

    def field(self, column: str) -> pa.Field | None:
        """The column's field, None where this state has no such column."""
        return self.schema.field(column) if column in self.schema.names else None

    def count(self) -> int:
        """Number of rows."""
        return 0 if self.dataset is None else int(self.dataset.count_rows())

    def fragments(self, columns: list[str]) -> dict[str, Any]:
        """Fragments by what decides these columns' values in them: the fragment, its deleted rows, the files of the columns."""
        if self.dataset is None:
            return {}
        wanted = {i for column in self.dataset.lance_schema.fields() if column.name() in columns for i in _ids(column)}
        found = {}
        for fragment in self.dataset.get_fragments():
            facts = fragment.metadata.to_json()
            files = sorted(
                (f["path"], sorted(wanted & {*f["fields"]})) for f in facts.pop("files") if wanted & {*f["fields"]}
            )
            found[json.dumps([facts, files], sort_keys=True, default=str)] = fragment
        return found

    def scan(self, fragments: list[Any], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Streams columns of some fragments, with `_rowid`."""
        if self.dataset is not None and fragments:
            options = {"columns": columns, "with_row_id": True, "batch_size": _BATCH_ROWS}
            yield from self.dataset.scanner(fragments=fragments, scan_in_order=True, **options).to_batches()

    def take(self, row_id_M: np.ndarray, columns: list[str]) -> pa.Table:
        """Rows by their `_rowid`s."""
        return self.lake.take(self.name, row_id_M.tolist(), self.version or 0, columns)

    def examples(self, row_id_M: np.ndarray) -> list[str]:
        """The keys of the first few rows in the table's order."""
        if not len(row_id_M):
            return []
        rows = self.take(np.sort(row_id_M)[:EXAMPLES], self.key)
        return [" ".join(str(value) for value in row.values()) for row in rows.to_pylist()]


def _ids(column: Any) -> Iterator[int]:
    """Field ids of a column and of what is nested in it."""
    yield column.id()
    for child in column.children():
        yield from _ids(child)


class Rows(NamedTuple):
    """Rows of one side, sorted by key_N. uint64 each; value_N is that of one column, zeros where none was asked for."""

    key_N: np.ndarray
    row_id_N: np.ndarray
    value_N: np.ndarray


def diff_table(old: Side, new: Side, progress: Progress | None = None) -> TableDiff:
    """Compares a table at two versions."""
    found = TableDiff(new.name, (old.count(), new.count()))
    if progress:
        progress(new.name, None)
    for before, after in joined(old, new, None):
        gone, came = ~_inside(before.key_N, after.key_N), ~_inside(after.key_N, before.key_N)
        found.removed += int(gone.sum())
        found.added += int(came.sum())
        found.removed_examples += old.examples(before.row_id_N[gone])
        found.added_examples += new.examples(after.row_id_N[came])
    del found.removed_examples[EXAMPLES:], found.added_examples[EXAMPLES:]
    for name in dict.fromkeys([*old.schema.names, *new.schema.names]):
        if name not in (*new.key, *_PROVENANCE):
            if progress:
                progress(new.name, name)
            column = diff_column(old, new, name)
            found.columns += [column] if column.differs else []
    return found


def diff_column(old: Side, new: Side, name: str) -> ColumnDiff:
    """Compares one column, of the rows that both sides have."""
    was, now = old.field(name), new.field(name)
    by, was_by = filled_by(now or was), filled_by(was)
    found = ColumnDiff(name, by, was_by if was is not None and now is not None and by != was_by else None)
    if old.dataset is not None and new.dataset is not None and (was is None or now is None):
        found.status = "added" if was is None else "removed"
    cosines, examples = [np.zeros(0, np.float32)], []
    for before, after in joined(old, new, name):
        common = _inside(after.key_N, before.key_N)
        place = np.searchsorted(before.key_N, after.key_N[common])
        a, b = before.value_N[place], after.value_N[common]
        different = a != b
        filled, emptied = different & (a == NULL), different & (b == NULL)
        changed = different & ~filled & ~emptied
        found.filled, found.emptied = found.filled + int(filled.sum()), found.emptied + int(emptied.sum())
        found.changed += int(changed.sum())
        row_ids = before.row_id_N[place], after.row_id_N[common]
        examples += new.examples(row_ids[1][changed if changed.any() else different])
        if now is not None and was is not None and _are_vectors(was.type, now.type):
            cosines.append(_cosines(old, new, name, row_ids[0][changed], row_ids[1][changed]))
    found.examples = examples[:EXAMPLES]
    if len(cosine_M := np.concatenate(cosines)):
        found.cosine = {"min": round(float(cosine_M.min()), 6), "median": round(float(np.median(cosine_M)), 6)}
    return found


def filled_by(field: pa.Field | None) -> str | None:
    """Which model or op fills a column, by the field's metadata, and its version or weights; None: the lake itself."""
    facts = facts_of(field) if field is not None else {}
    digest = f", weights {facts['digest'][:8]}" if facts.get("digest") else ""
    if "op" in facts:
        settings = facts.get("settings", "{}")
        return f"{facts['op']} version {facts.get('version', '?')}{'' if settings == '{}' else f' {settings}'}{digest}"
    return f"{facts['spec']}{digest}" if "spec" in facts else None


def joined(old: Side, new: Side, column: str | None) -> Iterator[tuple[Rows, Rows]]:
    """Both sides' rows that are not in shared fragments, with one column's hashes, in parts that hold equal keys together."""
    columns = [*old.key, *([column] if column else [])]
    before, after = old.fragments(columns), new.fragments(columns)
    fragments = [[f for k, f in mine.items() if k not in other] for mine, other in ((before, after), (after, before))]
    most = max(sum(f.count_rows() for f in side) for side in fragments)
    parts = -(-most // PART_ROWS)
    for part in range(parts):
        old_rows, new_rows = (
            rows_of(side, own, column, (part, parts)) for side, own in zip((old, new), fragments, strict=True)
        )
        yield old_rows, new_rows


def rows_of(side: Side, fragments: list[Any], column: str | None, part: tuple[int, int]) -> Rows:
    """Rows of some fragments whose key falls into part i of n, sorted by key."""
    read = [*side.key, *([column] if column and side.field(column) is not None else [])]
    found = []
    for batch in side.scan(fragments, read):
        key = combined_hashes([value_hashes(batch[name]) for name in side.key], batch.num_rows)
        value = value_hashes(batch[column]) if column in read else np.full(batch.num_rows, NULL)
        mine = np.flatnonzero(key % np.uint64(part[1]) == np.uint64(part[0])) if part[1] > 1 else slice(None)
        found.append((key[mine], batch["_rowid"].to_numpy()[mine], value[mine]))
    if not found:
        return Rows(*(np.zeros(0, np.uint64) for _ in range(3)))
    key, row_id, value = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    order = np.lexsort((value, key))
    return _told_apart(Rows(key[order], row_id[order], value[order]))


def _told_apart(rows: Rows) -> Rows:
    """Rows of one key get keys of their own, by their place among their kind: what a key names twice is compared in turn."""
    first = np.flatnonzero(np.diff(rows.key_N, prepend=rows.key_N[:1] + np.uint64(1)))
    turn = np.arange(len(rows.key_N)) - np.repeat(first, np.diff(first, append=len(rows.key_N)))
    if not turn.any():
        return rows
    key_N = np.where(turn == 0, rows.key_N, combined_hashes([rows.key_N, turn.astype(np.uint64)], len(turn)))
    order = np.argsort(key_N, kind="stable")
    return Rows(key_N[order], rows.row_id_N[order], rows.value_N[order])


def _inside(key_N: np.ndarray, among_M: np.ndarray) -> np.ndarray:
    """bool (N,): which keys are among sorted others."""
    if not len(among_M):
        return np.zeros(len(key_N), bool)
    return among_M[np.minimum(np.searchsorted(among_M, key_N), len(among_M) - 1)] == key_N


def _are_vectors(was: pa.DataType, now: pa.DataType) -> bool:
    """Whether both types are vectors of floats of one length, which is what a cosine is defined for."""
    fixed = pt.is_fixed_size_list(was) and pt.is_fixed_size_list(now) and was.list_size == now.list_size
    return bool(fixed and pt.is_floating(was.value_type) and pt.is_floating(now.value_type))


def _cosines(old: Side, new: Side, name: str, old_row_M: np.ndarray, new_row_M: np.ndarray) -> np.ndarray:
    """Cosine of each changed vector with what it was, float32 (M,)."""
    order = np.argsort(new_row_M)
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(order), _VECTOR_ROWS):
        rows = order[start : start + _VECTOR_ROWS]
        a_MD, b_MD = (_vectors(s, name, ids[rows]) for s, ids in ((old, old_row_M), (new, new_row_M)))
        parts.append(np.einsum("md,md->m", a_MD, b_MD))
    return np.concatenate(parts)


def _vectors(side: Side, name: str, row_id_M: np.ndarray) -> np.ndarray:
    """Unit vectors of rows, float32 (M, D)."""
    cells = side.take(row_id_M, [name])[name].combine_chunks()
    return normalised(list_values(cells, cells.type.list_size))
