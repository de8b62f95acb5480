"""The parts of a report that show a selection: the map, contact sheets of clusters, groups of duplicates side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.incremental import finest
from pipelines.curation.items import Items
from pipelines.curation.pool import DUPLICATES
from pipelines.curation.vectors import list_values, vector_dim
from pipelines.lake import Lake
from pipelines.reporting.pictures import Thumbnails
from pipelines.reporting.tables import item_names
from pipelines.search.columns import Column
from vfm_ops.curate.blocks import row_uniform
from vfm_ops.curate.kmeans import KMeansOptions, kmeans
from vfm_ops.curate.projection import project

MAP_POINTS = 5000
_CLUSTERS, _PER_CLUSTER, _GROUPS, _PER_GROUP = 36, 14, 36, 8


@dataclass(frozen=True)
class Selected:
    """A selection's rows in the order of items: kept bool, kind object, other object, reason object, score float64, top and
    fine clusters int64 (-1: none); N each. known: the selection speaks of the item."""

    known: np.ndarray
    kept: np.ndarray
    kind: np.ndarray
    other: np.ndarray
    reason: np.ndarray
    score: np.ndarray
    top: np.ndarray
    fine: np.ndarray

    @classmethod
    def of(cls, items: Items, rows: pa.Table) -> Selected:
        """From rows of `selections`; those of items that are gone are left out."""
        place = pc.index_in(items.frame_id, value_set=_flat(rows["frame_id"]))
        mine = rows.take(place)
        paths = mine["cluster"]
        top = pc.list_slice(_flat(paths), 0, 1)
        return cls(
            known=place.is_valid().to_numpy(zero_copy_only=False),
            kept=mine["kept"].fill_null(False).to_numpy(),
            kind=mine["kind"].to_numpy(zero_copy_only=False),
            other=mine["other"].to_numpy(zero_copy_only=False),
            reason=mine["reason"].to_numpy(zero_copy_only=False),
            score=mine["score"].cast(pa.float64()).to_numpy(zero_copy_only=False),
            top=finest(pa.chunked_array([top])),
            fine=finest(paths),
        )


def map_points(
    lake: Lake, column: Column, items: Items, selected: Selected | None, thumbs: Thumbnails
) -> dict[str, Any]:
    """The embedding map: at most MAP_POINTS items, as many kept as dropped ones where there are enough of both."""
    chosen = _sample(len(items), selected.kept if selected else None)
    vectors, usable = _vectors(lake, column, items, chosen)
    chosen = chosen[usable]
    if not len(chosen):
        return {}
    xy = project(vectors)
    if selected is not None and (selected.top[chosen] >= 0).any():
        cluster = selected.top[chosen]
    else:
        count = int(np.clip(len(chosen) // 50, 1, 12))
        cluster = kmeans(vectors, count, KMeansOptions(metric="cosine", iterations=10, workers=1)).labels_N
    kinds = selected.kind[chosen] if selected else np.full(len(chosen), None, object)
    names = sorted({k for k in kinds.tolist() if k is not None})
    return {
        "x": np.round(xy[:, 0], 3).tolist(),
        "y": np.round(xy[:, 1], 3).tolist(),
        "cluster": cluster.tolist(),
        "kept": selected.kept[chosen].astype(int).tolist() if selected else None,
        "kinds": names,
        "kind": [names.index(k) if k is not None else -1 for k in kinds.tolist()],
        "name": item_names(lake, items, chosen),
        "reason": [r or "" for r in selected.reason[chosen].tolist()] if selected else None,
        "thumb": thumbs.of(chosen),
        "of": len(items),
    }


def _sample(count: int, kept_N: np.ndarray | None) -> np.ndarray:
    """Numbers of the items shown, sorted."""
    luck = row_uniform(np.arange(count), 0)
    if kept_N is None or count <= MAP_POINTS:
        return np.sort(np.argsort(luck, kind="stable")[:MAP_POINTS])
    kept, dropped = np.flatnonzero(kept_N), np.flatnonzero(~kept_N)
    half = MAP_POINTS // 2
    most = max(half, MAP_POINTS - len(dropped)), max(half, MAP_POINTS - len(kept))
    return np.sort(np.concatenate([rows[np.argsort(luck[rows])[:n]] for rows, n in zip((kept, dropped), most)]))


def _vectors(lake: Lake, column: Column, items: Items, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of chosen items that have a usable one, float32, and which those are."""
    dim = vector_dim(lake.schema("frames").field(column.name))
    parts = []
    for low in range(0, len(chosen), 1024):
        rows = lake.take("frames", items.row_id[chosen[low : low + 1024]].tolist(), items.version, [column.name])
        parts += [list_values(chunk, dim) for chunk in rows[column.name].chunks]
    x_ND = np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, dim), np.float32)
    usable = np.asarray(np.isfinite(x_ND).all(axis=1) & x_ND.any(axis=1))
    return x_ND[usable], usable


def cluster_sheets(items: Items, selected: Selected, thumbs: Thumbnails) -> list[dict[str, Any]]:
    """A contact sheet for each of the largest coarse clusters: kept items first, then some that were dropped."""
    labels, sizes = np.unique(selected.top[selected.top >= 0], return_counts=True)
    sheets = []
    for number in np.argsort(-sizes, kind="stable")[:_CLUSTERS]:
        members = np.flatnonzero(selected.top == labels[number])
        luck = row_uniform(members, 1)
        shown = members[np.lexsort((luck, ~selected.kept[members]))][:_PER_CLUSTER]
        sheets.append(
            {
                "cluster": int(labels[number]),
                "size": int(sizes[number]),
                "kept": int(selected.kept[members].sum()),
                "finer": len(np.unique(selected.fine[members])),
                "thumbs": thumbs.of(shown),
                "shown": selected.kept[shown].astype(int).tolist(),
            }
        )
    return sheets


def duplicate_groups(lake: Lake, items: Items, selected: Selected, thumbs: Thumbnails) -> list[dict[str, Any]]:
    """Groups of duplicates, some of each kind, the largest first: what stayed, and what was dropped for it."""
    groups: list[dict[str, Any]] = []
    kinds = [k for k in (*DUPLICATES, "redundant", "contaminates") if (selected.kind == k).any()]
    for kind in kinds:
        dropped = np.flatnonzero(selected.kind == kind)
        leaders, of, counts = np.unique(
            [str(o) for o in selected.other[dropped].tolist()], return_inverse=True, return_counts=True
        )
        for number in np.argsort(-counts, kind="stable")[: max(4, _GROUPS // len(kinds))]:
            members = dropped[of == number][:_PER_GROUP]
            leader = pc.index(items.frame_id, leaders[number]).as_py()
            first = np.array([leader]) if leader >= 0 else members[:0]
            shown = np.concatenate([first, members]).astype(np.int64)
            groups.append(
                {
                    "kind": kind,
                    "count": int(counts[number]),
                    "led": len(first),
                    "thumbs": thumbs.of(shown),
                    "names": item_names(lake, items, shown),
                    "reasons": [r or "" for r in selected.reason[shown].tolist()],
                }
            )
    return groups


def _flat(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged
