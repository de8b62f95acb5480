"""Selections of a lake: their rows, and the manifest that says how to get the same rows again.

    LAKE/selections.lance          the registry: a row for every item considered, kept or dropped, why, its cluster
    LAKE/selections/NAME.gN.json   of a curated one, a manifest a generation: pinned versions, recipe, model, seed, counts
    LAKE/selections/NAME.gN.npz    the clusters that a full run left

A generation is written so: clusters, then a pending manifest, then all rows in one commit, then tags, then the manifest.
Whoever comes after a kill finds the pending one, and finishes or forgets it by whether the rows were committed. Files can't be
fenced as tables are (`pipelines.lake.fence`), so each has its generation in its name: a run that was paused and lost its lease
after the commit writes what its successor has finished for it, and touches nothing of later generations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.replace import pin, replace_rows
from pipelines.lake.schema import facts_of
from pipelines.lake.sql import equals
from vfm_ops.errors import UsageError

BY_HAND = "by hand"  # the mode of a selection that a person made
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# Beside the columns that every lake's selections have: the reason for machines.
EXTRA = (
    pa.field("kind", pa.string()),  # of the reason
    pa.field("other", pa.string()),  # the frame or asset that it refers to
    pa.field("score", pa.float32()),  # how near that is: cosine, or bits that differ
    pa.field("generation", pa.string()),  # key of the generation that wrote the row
)
ROWS = pa.schema([*SCHEMAS["selections"], *EXTRA])


@dataclass
class Manifest:
    """How a generation of a selection came about. versions: of tables, pinned by the tag; base: the generation before, for an
    incremental one. funnel: items left after each step. tally: items by kind of reason, over all generations."""

    selection: str
    generation: int
    key: str
    mode: str  # 'full', 'incremental' or BY_HAND
    base: int | None
    state: int | None  # the generation whose clusters are used
    recipe: str  # hash
    recipe_yaml: str
    seed: int
    column: str
    model: dict[str, str]
    versions: dict[str, int]
    tag: str
    code_version: str
    funnel: list[tuple[str, int]] = field(default_factory=list)
    tally: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    items: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)


def check_name(name: str) -> str:
    """The name of a selection. UsageError when it can't be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't name a selection: use letters, digits, - and _ (at most 64)")
    return name


def list_selections(lake: Lake) -> list[str]:
    """Names of all selections, curated and made by hand, sorted: those that have rows."""
    return sorted(count_kept(lake))


def count_kept(lake: Lake) -> dict[str, int]:
    """How many items each selection keeps, by name. Streams: memory is that of the names."""
    kept: dict[str, int] = {}
    for batch in lake.scan("selections", ["selection", "kept"]):
        rows = pa.table({"name": batch["selection"], "kept": pc.fill_null(batch["kept"], True).cast(pa.int64())})
        for row in rows.group_by("name").aggregate([("kept", "sum")]).to_pylist():
            kept[row["name"]] = kept.get(row["name"], 0) + row["kept_sum"]
    return kept


def open_selection(lake: Lake, name: str) -> Manifest:
    """A selection's manifest; of one made by hand, which has none, one that says so. UsageError when it is unknown."""
    return load_manifest(lake, name) or _by_hand(lake, name)


def _by_hand(lake: Lake, name: str) -> Manifest:
    versions = {table: int(lake.table(table).version) for table in ("frames", "assets")}
    column = next((f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")), None)
    frames, kept = lake.count("frames"), kept_frames(lake, name).num_rows
    return Manifest(
        selection=name,
        generation=0,
        key="",
        mode=BY_HAND,
        base=None,
        state=None,
        recipe="",
        recipe_yaml="",
        seed=0,
        column=column.name if column else "",
        model=facts_of(column) if column else {},
        versions=versions,
        tag="",
        code_version="",
        funnel=[("frames", frames), ("picked by hand", kept)],
        tally={"picked_by_hand": kept},
        kept=kept,
        items=frames,
    )


def refuse_by_hand(lake: Lake, name: str) -> None:
    """UsageError where `name` was made by hand: curating under it would replace what a person picked."""
    if load_manifest(lake, name) is None and read_rows(lake, name, columns=["frame_id"]).num_rows:
        raise UsageError(f"{lake.root} has a selection {name} that was made by hand: curate under another `name`")


def _unknown(lake: Lake, name: str, known: list[str]) -> UsageError:
    return UsageError(f"{lake.root} has no selection {name!r}; it has {', '.join(known) or 'none yet'}")


def load_manifest(lake: Lake, name: str, generation: int | None = None) -> Manifest | None:
    """A selection's manifest, the newest without `generation`; None when there is none."""
    if not _NAME.fullmatch(name):
        return None
    if generation is None:
        generation = max(_generations(lake, name), default=None)
    if generation is None:
        return None
    data = read_file(lake, f"{name}.g{generation}.json")
    return None if data is None else _parse(lake, f"{name}.g{generation}.json", data)


def _generations(lake: Lake, name: str) -> list[int]:
    """Numbers of the generations that have a manifest."""
    found = (re.fullmatch(rf"{name}\.g(\d+)\.json", file) for file in lake.list_files("selections"))
    return [int(m[1]) for m in found if m]


def _parse(lake: Lake, file: str, data: bytes) -> Manifest:
    try:
        facts = json.loads(data)
        return Manifest(**facts | {"funnel": [tuple(step) for step in facts["funnel"]]})
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"the manifest {file} in {lake.root} is damaged: remove selections/{file}, and curate anew"
        ) from None


def read_rows(lake: Lake, name: str, version: int | str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Rows of a selection, at a version or tag of the table; empty when there are none. Columns for machines are null where
    the table has none: one that was only written by hand."""
    wanted = columns or ROWS.names
    dataset = lake.dataset("selections", version)
    if dataset is None:
        return ROWS.empty_table().select(wanted)
    known = [c for c in wanted if c in dataset.schema.names]
    rows = dataset.to_table(columns=known, filter=equals("selection", name))
    for column in wanted:
        if column not in known:
            rows = rows.append_column(ROWS.field(column), pa.nulls(rows.num_rows, ROWS.field(column).type))
    return rows.select(wanted)


def kept_frames(lake: Lake, name: str) -> pa.Table:
    """frame_id and rank of a selection's kept items, by rank. UsageError when the selection is unknown."""
    rows = read_rows(lake, name, columns=["frame_id", "rank", "kept"])
    if not rows.num_rows:
        raise _unknown(lake, name, list_selections(lake))
    return rows.filter(pc.fill_null(rows["kept"], True)).select(["frame_id", "rank"]).sort_by("rank")


class SelectedLake(Lake):
    """A lake as if it held the kept frames of a selection alone, with their assets, detections and tracks: for reading.

    UsageError from the constructor when the selection is unknown.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        super().__init__(lake.root)
        self._frames = pc.unique(kept_frames(lake, name)["frame_id"])
        self._assets = pc.unique(pc.replace_substring_regex(self._frames, ":[0-9]+$", ""))

    def scan(
        self, table: str, columns: list[str] | None = None, filter: str | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """As Lake.scan, without what is not of the selection."""
        names = self.schema(table).names
        keys = ["frame_id"] if "frame_id" in names else [n for n in ("asset_id", "frame_index") if n in names]
        wanted = None if columns is None else [*columns, *(k for k in keys if k not in columns)]
        limit, offset = options.pop("limit", None), options.pop("offset", 0) or 0
        for batch in super().scan(table, wanted, filter, **options):
            inside = batch.filter(self._inside(batch, keys)) if keys else batch
            inside = inside.slice(offset, limit) if limit is not None else inside.slice(offset)
            offset = max(0, offset - batch.num_rows)
            if columns is not None:
                inside = inside.select(columns)
            if inside.num_rows:
                yield inside

    def count(self, table: str, filter: str | None = None) -> int:
        """As Lake.count, of the selection."""
        keys = [n for n in ("frame_id", "asset_id", "frame_index") if n in self.schema(table).names]
        if not keys:
            return super().count(table, filter)
        return sum(batch.num_rows for batch in self.scan(table, keys, filter))

    def _inside(self, batch: pa.RecordBatch, keys: list[str]) -> pa.Array:
        if keys == ["asset_id"]:
            return pc.is_in(batch["asset_id"], value_set=self._assets)
        if "frame_id" in keys:
            return pc.is_in(batch["frame_id"], value_set=self._frames)
        ids = pc.binary_join_element_wise(batch["asset_id"], batch["frame_index"].cast(pa.string()), ":")
        return pc.is_in(ids, value_set=self._frames)


def commit(lake: Lake, manifest: Manifest, rows: Iterator[pa.RecordBatch], state: bytes | None) -> None:
    """Makes a generation the newest one: all of it or nothing, whatever happens in between."""
    name = manifest.selection
    lake.ensure("selections", EXTRA)
    if state is not None:
        write_file(lake, f"{name}.g{manifest.generation}.npz", state)
    write_file(lake, _pending(manifest), _dump(manifest))
    replace_rows(lake, "selections", "selection", name, pa.RecordBatchReader.from_batches(_schema(lake), rows))
    _publish(lake, manifest)


def recover(lake: Lake, name: str) -> None:
    """Finishes, or forgets, what a killed run left behind."""
    for file in lake.list_files("selections"):
        if re.fullmatch(rf"{name}\.(g\d+\.)?pending\.json", file) and (data := read_file(lake, file)) is not None:
            manifest = _parse(lake, file, data)
            dataset = lake.dataset("selections")
            key = f"{equals('selection', name)} AND {equals('generation', manifest.key)}"
            if dataset is not None and "generation" in dataset.schema.names and dataset.count_rows(filter=key):
                _publish(lake, manifest)
            remove_file(lake, file)


def _publish(lake: Lake, manifest: Manifest) -> None:
    name = manifest.selection
    for table in ("frames", "assets"):
        pin(lake, table, manifest.versions[table], manifest.tag)
    pin(lake, "selections", lake.table("selections").version, manifest.tag)
    write_file(lake, f"{name}.g{manifest.generation}.json", _dump(manifest))
    # NAME.json: the newest generation's once more, as the first versions wrote it.
    for file in (_pending(manifest), f"{name}.work.npz", f"{name}.json"):
        remove_file(lake, file)


def _pending(manifest: Manifest) -> str:
    return f"{manifest.selection}.g{manifest.generation}.pending.json"


def _schema(lake: Lake) -> pa.Schema:
    """The rows' columns in the table's own order."""
    return pa.schema([ROWS.field(f) for f in lake.schema("selections").names if f in ROWS.names])


def _dump(manifest: Manifest) -> bytes:
    return json.dumps(asdict(manifest), indent=1).encode()


# -- files beside the tables -------------------------------------------------------------------------------------------


def read_file(lake: Lake, name: str) -> bytes | None:
    """A file of LAKE/selections; None when it is not there."""
    return lake.get_file(f"selections/{name}")


def write_file(lake: Lake, name: str, data: bytes) -> None:
    """Writes a file of LAKE/selections, whole or not at all."""
    lake.put_file(f"selections/{name}", data)


def remove_file(lake: Lake, name: str) -> None:
    """Removes a file of LAKE/selections where it is."""
    lake.remove_file(f"selections/{name}")
