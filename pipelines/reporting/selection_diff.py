"""What two selections of a lake differ in: which frames only one keeps, whose reason is another, and whose neighbours are.

Rows are streamed into sorted arrays of hashes, 25 bytes an item; neighbours are looked up for a sample of the frames that both
keep, in one pass over the kept vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.selections import Manifest, kept_frames, open_selection
from pipelines.curation.vectors import list_values
from pipelines.lake import Lake
from pipelines.lake.sql import equals
from pipelines.reporting.diff import EXAMPLES, ROW_KEYS, Side
from pipelines.reporting.value_hashes import value_hashes
from vfm_ops.curate.blocks import local_map
from vfm_ops.curate.retrieval import nearest_rows_of
from vfm_ops.errors import UsageError

QUERIES = 1000  # frames whose neighbours are looked up
NOT_CONSIDERED = "not considered"


@dataclass
class Change:
    """Items whose decision is another: the kind of reason in either selection, how many, and three of their ids."""

    old: str
    new: str
    count: int
    examples: list[str]


@dataclass
class Neighbours:
    """differ: share of the k nearest kept frames that are others in the new selection, mean over the `frames` looked at."""

    k: int
    frames: int
    columns: tuple[str, str]
    differ: float


@dataclass
class SelectionDiff:
    """kept: by each, and by both. only_old, only_new: frames that one keeps and the other does not, by the reasons for it;
    reasons: frames that both keep, or both drop, for another kind of reason. no_neighbours: why they were not compared."""

    old: str
    new: str
    kept: tuple[int, int, int]
    only_old: list[Change] = field(default_factory=list)
    only_new: list[Change] = field(default_factory=list)
    reasons: list[Change] = field(default_factory=list)
    neighbours: Neighbours | None = None
    no_neighbours: str | None = None


class Items(NamedTuple):
    """Items of a selection by hash of frame id, sorted. kind_N: index into the kinds of reason."""

    key_N: np.ndarray
    row_id_N: np.ndarray
    kept_N: np.ndarray
    kind_N: np.ndarray


def diff_selections(lake: Lake, old: str, new: str, k: int = 10) -> SelectionDiff:
    """Compares two selections of a lake as they are now.

    Args:
        lake: an open lake.
        old, new: their names.
        k: how many nearest kept frames are compared, at least 1.

    Returns:
        A SelectionDiff.

    Raises:
        UsageError: for an unknown selection, or k below 1.

    Example:
        diff_selections(Lake.open("lake"), "curated", "mine").kept
    """
    if k < 1:
        raise UsageError(f"neighbours must be at least 1, not {k}")
    manifests = open_selection(lake, old), open_selection(lake, new)
    side, kinds = (
        Side(lake, "selections", int(lake.table("selections").version), ROW_KEYS["selections"]),
        [NOT_CONSIDERED],
    )
    a, b = (read_items(side, name, kinds) for name in (old, new))
    key_N = np.union1d(a.key_N, b.key_N)
    (kept_a, kind_a, row_a), (kept_b, kind_b, row_b) = (_aligned(items, key_N) for items in (a, b))
    found = SelectionDiff(old, new, (int(a.kept_N.sum()), int(b.kept_N.sum()), int((kept_a & kept_b).sum())))
    row_N = np.where(row_b >= 0, row_b, row_a)
    groups = (kept_a & ~kept_b, kept_b & ~kept_a, (kept_a == kept_b) & (kind_a != kind_b) & (row_a >= 0) & (row_b >= 0))
    found.only_old, found.only_new, found.reasons = (
        list(_changes(side, chosen, kind_a, kind_b, row_N, kinds)) for chosen in groups
    )
    _compare_neighbours(lake, manifests, k, found)
    return found


def read_items(side: Side, name: str, kinds: list[str]) -> Items:
    """The items of a selection; kinds of reason that are new are appended to `kinds`."""
    dataset = side.dataset
    machine = "kind" in side.schema.names
    columns = ["frame_id", "kept", "reason", *(["kind"] if machine else [])]
    where = equals("selection", name)
    parts = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.int32))]
    for batch in dataset.scanner(columns=columns, filter=where, with_row_id=True).to_batches():
        kept = pc.fill_null(batch["kept"], True)
        plain = pc.if_else(kept, "picked by hand", "dropped by hand")
        kind = pc.coalesce(batch["kind"], plain) if machine else plain
        coded = kind.dictionary_encode()
        known = coded.dictionary.to_pylist()
        kinds += [text for text in known if text not in kinds]
        code = np.array([kinds.index(text) for text in known], np.int32)[coded.indices.to_numpy()]
        row_id = batch["_rowid"].to_numpy().astype(np.int64)
        parts.append((value_hashes(batch["frame_id"]), row_id, kept.to_numpy(zero_copy_only=False), code))
    key, row_id, kept, code = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    _, first = np.unique(key, return_index=True)  # a frame that was drawn twice is one frame
    return Items(key[first], row_id[first], kept[first], code[first])


def _aligned(items: Items, key_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kept, kind and row id of each key; of one that the selection does not have: False, 0 (NOT_CONSIDERED) and -1."""
    place = np.searchsorted(key_N, items.key_N)
    kept, kind, row = np.zeros(len(key_N), bool), np.zeros(len(key_N), np.int32), np.full(len(key_N), -1, np.int64)
    kept[place], kind[place], row[place] = items.kept_N, items.kind_N, items.row_id_N
    return kept, kind, row


def _changes(
    side: Side, chosen: np.ndarray, kind_a: np.ndarray, kind_b: np.ndarray, row_N: np.ndarray, kinds: list[str]
) -> Iterator[Change]:
    """The chosen items by their pair of kinds, the commonest pair first."""
    pairs, place, counts = np.unique(
        np.stack([kind_a[chosen], kind_b[chosen]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    place = place.reshape(-1)  # numpy 2.0 gives it another shape than later ones
    for number in np.argsort(-counts, kind="stable"):
        rows = np.sort(row_N[chosen][place == number])[:EXAMPLES]
        ids = side.take(rows, ["frame_id"])["frame_id"].to_pylist()
        yield Change(kinds[pairs[number][0]], kinds[pairs[number][1]], int(counts[number]), ids)


def _compare_neighbours(lake: Lake, manifests: tuple[Manifest, Manifest], k: int, found: SelectionDiff) -> None:
    """Fills in `neighbours`, or why they can't be compared."""
    names = lake.schema("frames").names
    columns = manifests[0].column, manifests[1].column
    for manifest in manifests:
        if manifest.column not in names:
            what = f"has no column {manifest.column} any more" if manifest.column else "has no embedding"
            found.no_neighbours = f"frames {what}, which selection {manifest.selection} would be compared by"
            return
    kept = [pc.unique(kept_frames(lake, m.selection)["frame_id"]).sort() for m in manifests]
    both = kept[0].filter(pc.is_in(kept[0], value_set=kept[1]))
    asked = both.take(pa.array(np.unique(np.linspace(0, len(both) - 1, min(len(both), QUERIES)).astype(int))))
    least = min(k, len(kept[0]) - 1, len(kept[1]) - 1)
    if least < 1 or not len(asked):
        found.no_neighbours = "there are too few frames that both keep"
        return
    near = [nearest_kept(lake, column, ids, asked, least) for column, ids in zip(columns, kept)]
    has_vector = (near[0] >= 0).all(axis=1) & (near[1] >= 0).all(axis=1)
    if not has_vector.any():
        found.no_neighbours = "no frame that both keep has a vector in both columns and enough neighbours"
        return
    # Places among the kept frames of the one, in terms of the other's; -2 where the other does not keep it.
    translated = pc.index_in(kept[0], value_set=kept[1]).fill_null(-2).to_numpy()
    in_new, new = translated[near[0][has_vector]], near[1][has_vector]
    same = (in_new[:, :, None] == new[:, None, :]).any(axis=2).mean()
    found.neighbours = Neighbours(least, len(new), columns, round(1.0 - float(same), 4))


def nearest_kept(lake: Lake, column: str, kept: pa.Array, asked: pa.Array, k: int) -> np.ndarray:
    """Of each asked frame the k nearest others that are kept, by cosine, as places in `kept`: int64 (Q, k), -1 where it has
    no vector or too few neighbours. One pass fetches the asked vectors, one compares them with all.
    """
    near = np.full((len(asked), k), -1, np.int64)
    found = list(_kept_vectors(lake, column, asked))
    if not found:
        return near
    query, x_QD = (np.concatenate(parts) for parts in zip(*found, strict=True))
    places: list[np.ndarray] = []

    def vectors() -> Iterator[np.ndarray]:
        for place, x_ND in _kept_vectors(lake, column, kept):
            places.append(place)
            yield x_ND

    row_QK = nearest_rows_of(local_map(vectors), x_QD, k + 1).rows  # one more: each is nearest to itself
    place_QK = np.where(row_QK < 0, -1, np.concatenate(places)[row_QK])
    itself_QK = place_QK == pc.index_in(asked, value_set=kept).to_numpy()[query][:, None]
    itself_last = np.argsort(itself_QK, axis=1, kind="stable")
    near[query] = np.take_along_axis(place_QK, itself_last, axis=1)[:, :k]
    return near


def _kept_vectors(lake: Lake, column: str, ids: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Streams (places in `ids`, vectors float (n, D)) of those of the frames that have a vector."""
    for batch in lake.scan(
        "frames", ["frame_id", column], f"{column} IS NOT NULL", batch_size=4096, scan_in_order=True
    ):
        place = pc.index_in(batch["frame_id"], value_set=ids)
        inside = place.is_valid()
        cells = batch[column].filter(inside)
        if len(cells):
            yield place.drop_null().to_numpy(), list_values(cells, cells.type.list_size)
