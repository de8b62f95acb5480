"""Selections of a lake: their rows, and the manifest that says how to get the same rows again.

    LAKE/selections.lance       a row for every item considered: kept or dropped, why, its cluster
    LAKE/selections/NAME.json   the newest generation's manifest: pinned versions, recipe, model, seed, counts
    LAKE/selections/NAME.gN.json, NAME.gN.npz   earlier generations' manifests; the clusters that a full run left

A generation is written so: clusters, then a pending manifest, then all rows in one commit, then tags, then the manifest.
Whoever comes after a kill finds the pending one, and finishes or forgets it by whether the rows were committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.lake import SCHEMAS, Lake, filesystem
from pipelines.lake.replace import pin, replace_rows
from vfm_ops.errors import UsageError

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
    mode: str  # 'full' or 'incremental'
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
    """Names of the selections that have a manifest, sorted."""
    fs, root = filesystem(lake.root)
    found = fs.get_file_info(pafs.FileSelector(f"{root}/selections", allow_not_found=True))
    names = (f.base_name.removesuffix(".json") for f in found if f.base_name.endswith(".json"))
    return sorted(n for n in names if _NAME.fullmatch(n))


def load_manifest(lake: Lake, name: str, generation: int | None = None) -> Manifest | None:
    """A selection's manifest, the newest without `generation`; None when there is none."""
    data = read_file(lake, f"{name}.json" if generation is None else f"{name}.g{generation}.json")
    return None if data is None else _parse(lake, name, data)


def _parse(lake: Lake, name: str, data: bytes) -> Manifest:
    try:
        facts = json.loads(data)
        return Manifest(**facts | {"funnel": [tuple(step) for step in facts["funnel"]]})
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"the manifest of selection {name} in {lake.root} is damaged: remove selections/{name}.json, and curate anew"
        ) from None


def read_rows(lake: Lake, name: str, version: int | str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Rows of a selection, at a version or tag of the table; empty when there are none."""
    dataset = lake.dataset("selections", version)
    if dataset is None:
        return ROWS.empty_table().select(columns or ROWS.names)
    # A lake whose selections were written by hand lacks the columns for machines.
    known = [c for c in columns or ROWS.names if c in dataset.schema.names]
    return dataset.to_table(columns=known, filter=f"selection = '{name}'")


def kept_frames(lake: Lake, name: str) -> pa.Table:
    """frame_id and rank of a selection's kept items, by rank. UsageError when the selection is unknown."""
    rows = read_rows(lake, check_name(name), columns=["frame_id", "rank", "kept"])
    if not rows.num_rows:
        known = ", ".join(list_selections(lake)) or "none yet: run vfm curate"
        raise UsageError(f"{lake.root} has no selection {name!r}; it has {known}")
    return rows.filter(rows["kept"]).select(["frame_id", "rank"]).sort_by("rank")


def commit(lake: Lake, manifest: Manifest, rows: Iterator[pa.RecordBatch], state: bytes | None) -> None:
    """Makes a generation the newest one: all of it or nothing, whatever happens in between."""
    name = manifest.selection
    lake.ensure("selections", EXTRA)
    if state is not None:
        write_file(lake, f"{name}.g{manifest.generation}.npz", state)
    write_file(lake, f"{name}.pending.json", _dump(manifest))
    replace_rows(lake, "selections", "selection", name, pa.RecordBatchReader.from_batches(_schema(lake), rows))
    _publish(lake, manifest)


def recover(lake: Lake, name: str) -> None:
    """Finishes, or forgets, what a killed run left behind."""
    data = read_file(lake, f"{name}.pending.json")
    if data is None:
        return
    manifest = _parse(lake, name, data)
    dataset = lake.dataset("selections")
    key = f"selection = '{name}' AND generation = '{manifest.key}'"
    if dataset is not None and "generation" in dataset.schema.names and dataset.count_rows(filter=key):
        _publish(lake, manifest)
    else:
        remove_file(lake, f"{name}.pending.json")


def _publish(lake: Lake, manifest: Manifest) -> None:
    name = manifest.selection
    for table in ("frames", "assets"):
        pin(lake, table, manifest.versions[table], manifest.tag)
    pin(lake, "selections", lake.table("selections").version, manifest.tag)
    for file in (f"{name}.g{manifest.generation}.json", f"{name}.json"):
        write_file(lake, file, _dump(manifest))
    for file in (f"{name}.pending.json", f"{name}.work.npz"):
        remove_file(lake, file)


def _schema(lake: Lake) -> pa.Schema:
    """The rows' columns in the table's own order."""
    return pa.schema([ROWS.field(f) for f in lake.schema("selections").names if f in ROWS.names])


def _dump(manifest: Manifest) -> bytes:
    return json.dumps(asdict(manifest), indent=1).encode()


# -- files beside the tables -------------------------------------------------------------------------------------------


def read_file(lake: Lake, name: str) -> bytes | None:
    """A file of LAKE/selections; None when it is not there."""
    fs, root = filesystem(lake.root)
    try:
        with fs.open_input_file(f"{root}/selections/{name}") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def write_file(lake: Lake, name: str, data: bytes) -> None:
    """Writes a file of LAKE/selections, whole or not at all."""
    fs, root = filesystem(lake.root)
    path = f"{root}/selections/{name}"
    fs.create_dir(f"{root}/selections", recursive=True)
    # An object store shows an object when it is complete; a file system shows every byte.
    target = f"{path}.tmp" if isinstance(fs, pafs.LocalFileSystem) else path
    with fs.open_output_stream(target) as file:
        file.write(data)
    if target != path:
        fs.move(target, path)


def remove_file(lake: Lake, name: str) -> None:
    """Removes a file of LAKE/selections where it is."""
    fs, root = filesystem(lake.root)
    path = f"{root}/selections/{name}"
    if fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_file(path)
