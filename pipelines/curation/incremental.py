"""Incremental curation: what an earlier generation decided is kept, for items that are untouched since; so is their cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation import selections
from pipelines.curation.clusters import ClusterState
from pipelines.curation.pool import DUPLICATES, Pool
from pipelines.curation.selections import Manifest
from pipelines.lake import Lake
from vfm_ops.errors import UsageError

_FELL = (*DUPLICATES, "quality", "no_vector")
"""Reasons that end an item before later ones are compared with it."""


@dataclass
class Base:
    """The generation before. rows: all of its rows; untouched: those that stay; removed: items that are gone from the lake."""

    manifest: Manifest
    rows: pa.Table
    state: ClusterState | None
    untouched: pa.Table = field(default_factory=selections.ROWS.empty_table)
    removed: int = 0

    @property
    def kept(self) -> int:
        """Items kept among the untouched ones."""
        kept = self.untouched.filter(self.untouched["kept"])["frame_id"]
        return len(pc.unique(kept))

    def tally(self) -> dict[str, int]:
        """Untouched items by kind of reason."""
        firsts = self.untouched.group_by(["frame_id", "kind"]).aggregate([])
        counts = pc.value_counts(firsts["kind"])
        return {row["values"]: row["counts"] for row in counts.to_pylist()}

    def kept_per_cluster(self, clusters: int) -> np.ndarray:
        """Untouched kept items in each finest cluster: int64 (K,)."""
        return np.bincount(finest(self.untouched.filter(self.untouched["kept"])["cluster"]), minlength=clusters)

    def next_rank(self) -> int:
        """The first rank that is free."""
        highest = pc.max(self.untouched["rank"]).as_py()
        return 0 if highest is None else highest + 1


def finest(paths: pa.ChunkedArray) -> np.ndarray:
    """The last cluster of each path, int64; -1 where there is none."""
    flat = paths.combine_chunks()
    flat = pa.concat_arrays(flat.chunks) if isinstance(flat, pa.ChunkedArray) else flat
    lengths = pc.list_value_length(flat).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    out = np.full(len(flat), -1, np.int64)
    if len(values := flat.flatten()):
        out[lengths > 0] = values.to_numpy()[np.cumsum(lengths)[lengths > 0] - 1]
    return out


def load_base(lake: Lake, manifest: Manifest, at_tag: bool = False) -> Base:
    """The generation of a manifest: its rows (at its tag, where later ones were written) and its clusters."""
    rows = selections.read_rows(lake, manifest.selection, manifest.tag if at_tag else None)
    state = None
    if manifest.state is not None:
        data = selections.read_file(lake, f"{manifest.selection}.g{manifest.state}.npz")
        if data is None:
            raise UsageError(f"the clusters of selection {manifest.selection} are gone: curate anew with `full=True`")
        state = ClusterState.from_bytes(data)
    return Base(manifest, rows, state)


def keep_earlier_decisions(pool: Pool, base: Base) -> None:
    """Marks in the pool which items are new, which stand, and their clusters; and in the base, which rows stay.

    An item is new again when what it was dropped for is gone from the lake, or when it had no vector.
    """
    rows = base.rows
    place = pc.index_in(pool.items.frame_id, value_set=_flat(rows["frame_id"])).fill_null(-1).to_numpy()
    again = _reconsidered(pool, rows)
    known = place >= 0
    known[known] = ~again[place[known]]
    pool.fresh, at = ~known, place[known]
    kind = pc.is_in(rows["kind"], value_set=pa.array(_FELL)).to_numpy()
    pool.standing[known] = ~kind[at]
    pool.label[known] = finest(rows["cluster"])[at]
    pool.has_vector[known] = ~pc.equal(rows["kind"], "no_vector").to_numpy()[at]
    pool.centroids = base.state.centroids[0] if base.state else None
    present = pc.is_in(rows["frame_id"], value_set=pool.items.frame_id).to_numpy()
    base.removed = len(pc.unique(rows.filter(pa.array(~present))["frame_id"]))
    base.untouched = rows.filter(pa.array(present & ~again))


def _reconsidered(pool: Pool, rows: pa.Table) -> np.ndarray:
    """Rows whose reason no longer holds: bool (R,)."""
    refers = pc.is_in(rows["kind"], value_set=pa.array([*DUPLICATES, "redundant"])).to_numpy()
    there = pc.or_(
        pc.is_in(rows["other"], value_set=pool.items.frame_id), pc.is_in(rows["other"], value_set=pool.items.asset_ids)
    ).to_numpy()
    blank = pc.equal(rows["kind"], "no_vector").to_numpy()
    if blank.any():
        dataset = pool.lake.table("frames", pool.items.version)
        null = dataset.to_table(columns=["frame_id"], filter=f"{pool.column.name} IS NULL")["frame_id"]
        blank &= ~pc.is_in(rows["frame_id"], value_set=_flat(null)).to_numpy()
    return (refers & ~there) | blank


def _flat(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged
