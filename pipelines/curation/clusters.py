"""Clusters of a lake's items, and what is chosen by them: retrieval, pruning, balanced sampling.

A first run builds the hierarchy and leaves a `ClusterState`; later runs put new items into the same clusters.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curation.neighbours import old_neighbours
from pipelines.curation.outside import OutsideSet, load_item_set
from pipelines.curation.pool import Pool
from vfm_ops.curate.balance import sample_balanced
from vfm_ops.curate.blocks import row_uniform
from vfm_ops.curate.classes import balanced_rows, classify, fit_discriminant
from vfm_ops.curate.explain import cluster_path
from vfm_ops.curate.hierarchy import Hierarchy, HierarchyOptions, Level, build_hierarchy
from vfm_ops.curate.kmeans import KMeansOptions, assign
from vfm_ops.curate.retrieval import nearest_rows_of
from vfm_ops.curate.sampling import Retrieved, cluster_redundancy, retrieve_clusters, retrieve_nearest
from vfm_ops.errors import UsageError

ITEMS_PER_CLUSTER, MOST_CLUSTERS = 20, 20_000
_GATHER = 65536


@dataclass
class ClusterState:
    """What a later run needs: centroids a level (finest first), the parents of all but the coarsest level's clusters,
    how many items each finest cluster may keep, and how near a new item must come to each seed."""

    centroids: list[np.ndarray]
    parents: list[np.ndarray]
    cap_K: np.ndarray | None = None
    seed_floor_S: np.ndarray | None = None

    def path(self, label: int) -> list[int]:
        """From the coarsest level's cluster down to the finest's."""
        path = [label]
        for parent_K in self.parents:
            path.append(int(parent_K[path[-1]]))
        return path[::-1]

    def paths(self, labels_N: np.ndarray) -> np.ndarray:
        """'12/3' for each label, object (N,); items of one cluster share the string."""
        used, place = np.unique(labels_N, return_inverse=True)
        return np.array([cluster_path(self.path(k)) for k in used.tolist()], object)[place]

    def to_bytes(self) -> bytes:
        """As a numpy archive without objects."""
        arrays = {f"centroids{i}": c for i, c in enumerate(self.centroids)}
        arrays |= {f"parents{i}": p for i, p in enumerate(self.parents)}
        arrays |= {k: v for k, v in (("cap", self.cap_K), ("seed_floor", self.seed_floor_S)) if v is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ClusterState:
        """From `to_bytes`; nothing is unpickled."""
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            levels = [[found[k] for k in sorted(found.files) if k.startswith(p)] for p in ("centroids", "parents")]
            cap, floor = (found[k] if k in found.files else None for k in ("cap", "seed_floor"))
        return cls(levels[0], levels[1], cap, floor)


def auto_levels(items: int) -> tuple[int, ...]:
    """Clusters a level, finest first: about 20 items a finest cluster, then a tenth of it, at most three levels."""
    levels = [int(np.clip(items // ITEMS_PER_CLUSTER, 1, MOST_CLUSTERS))]
    while len(levels) < 3 and levels[-1] >= 40:
        levels.append(levels[-1] // 10)
    return tuple(levels)


def build_clusters(pool: Pool) -> tuple[ClusterState, Hierarchy, np.ndarray]:
    """Clusters the items that are alive. Returns the state, the hierarchy and the items it is over; sets pool.label for all."""
    settings = pool.recipe.cluster
    rows = np.flatnonzero(pool.alive)
    if settings is None or not len(rows):
        raise UsageError("every item was dropped before clustering: loosen the recipe's filters or thresholds")
    resources, levels = pool.recipe.resources, settings.levels
    kmeans = KMeansOptions(
        metric=settings.metric,
        iterations=settings.iterations,
        seed=pool.recipe.seed,
        workers=resources.workers,
        device=resources.device,
    )
    options = HierarchyOptions(
        auto_levels(len(rows)) if isinstance(levels, str) else levels, settings.resamplings, kmeans=kmeans
    )
    if options.clusters[0] > len(rows):
        raise UsageError(
            f"{options.clusters[0]} clusters were asked for, but only {len(rows)} items are left: lower cluster.levels"
        )
    hierarchy = build_hierarchy(None, options, map_blocks=pool.vectors(rows).map_blocks)
    state = ClusterState([lv.centroids_KD for lv in hierarchy.levels], [lv.labels_M for lv in hierarchy.levels[1:]])
    pool.label[rows] = hierarchy.levels[0].labels_M
    label_items(pool, state, np.flatnonzero(pool.fresh & ~pool.alive & pool.has_vector))
    return state, hierarchy, rows


def label_items(pool: Pool, state: ClusterState, items: np.ndarray) -> np.ndarray:
    """Puts items into the finest clusters of a state: sets pool.label. Returns their squared distances."""
    settings = pool.recipe.cluster
    if not len(items) or settings is None:
        return np.zeros(0, np.float32)
    resources = pool.recipe.resources
    kmeans = KMeansOptions(metric=settings.metric, workers=resources.workers, device=resources.device)
    pool.label[items], sqdist = assign(pool.vectors(items).map_blocks, state.centroids[0], kmeans)
    return sqdist


def retrieve(pool: Pool, state: ClusterState | None, standing_run: bool) -> tuple[np.ndarray | None, Retrieved | None]:
    """Drops what no seed retrieves. Returns the cosine that a later item must reach for each seed, and what was found."""
    settings = pool.recipe.retrieve
    rows = np.flatnonzero(pool.alive)
    if settings is None or not len(rows):
        return None, None
    seeds = load_item_set(pool.lake, pool.column, settings.seeds, labelled=settings.mode == "classes")
    pool.sets[seeds.name] = len(seeds.ids)
    if settings.mode == "classes":
        return _retrieve_classes(pool, state, rows, seeds, settings.total, standing_run), None
    floor = None
    if settings.mode == "clusters":
        if state is None:
            raise UsageError("retrieve.mode clusters needs clusters: add a cluster section")
        found = retrieve_clusters(
            seeds.vectors,
            state.centroids[0],
            pool.label[rows],
            metric=pool.recipe.cluster.metric if pool.recipe.cluster else "cosine",
            min_seeds=settings.min_seeds,
            per_cluster=settings.per_cluster,
            seed=pool.recipe.seed,
        )
    else:
        data = pool.vectors(rows).map_blocks
        found = retrieve_nearest(data, seeds.vectors, settings.k)
        if standing_run and state is not None and state.seed_floor_S is not None:
            near = found.cosine >= state.seed_floor_S[found.seed]
            found = Retrieved(found.rows[near], found.seed[near], found.cosine[near])
        elif not standing_run:
            floor = nearest_rows_of(data, seeds.vectors, settings.k).cosine[:, -1]
    missed = np.ones(len(rows), bool)
    missed[found.rows] = False
    pool.decisions.settle("not_retrieved", rows[missed])
    named = [seeds.ids[s] if s >= 0 else "" for s in found.seed.tolist()]
    pool.seed_of = dict(zip(rows[found.rows].tolist(), zip(named, found.cosine.tolist())))
    return floor, found


def _retrieve_classes(
    pool: Pool, state: ClusterState | None, rows: np.ndarray, seeds: OutsideSet, total: int, standing_run: bool
) -> np.ndarray | None:
    """Keeps `total` items, as many of each class of the seeds as there are; later, what is as clearly of its class.

    Returns the margin to be reached in each class. An item that is a seed itself has its own class.
    """
    names, class_S = seeds.classes()
    class_of = dict(zip(seeds.ids, class_S.tolist(), strict=True))
    ids = pool.items.frame_id.take(pa.array(rows)).to_pylist()
    known = {place: class_of[i] for place, i in enumerate(ids) if i in class_of}
    found = classify(pool.vectors(rows).map_blocks, fit_discriminant(seeds.vectors, class_S), known)
    floor_C = state.seed_floor_S if standing_run and state is not None else None
    kept = np.zeros(len(rows), bool)
    kept[balanced_rows(found, total) if floor_C is None else found.margin_N >= floor_C[found.class_N]] = True
    label = np.array(names, object)[found.class_N]
    pool.decisions.settle("class_full", rows[~kept], label=label[~kept])
    pool.seed_of = {item: (name, np.nan) for item, name in zip(rows[kept].tolist(), label[kept].tolist())}
    if standing_run:
        return None
    return np.array([found.margin_N[kept & (found.class_N == c)].min(initial=np.inf) for c in range(len(names))])


def prune(pool: Pool, state: ClusterState) -> None:
    """SemDeDup within finest clusters, some whole clusters in memory at a time."""
    settings = pool.recipe.prune
    rows = np.flatnonzero(pool.alive)
    if settings is None or not len(rows):
        return
    if pool.standing.any():
        old = np.flatnonzero(pool.standing)
        new_of, old_of, cosine = old_neighbours(
            pool.vectors(rows), pool.vectors(old), pool.label[old], state.centroids[0], settings.cosine, probes=1
        )
        order = np.lexsort((old_of, -cosine, new_of))
        first = order[np.flatnonzero(np.diff(new_of[order], prepend=-1))]
        _settle_redundant(pool, state, rows[new_of[first]], old[old_of[first]], cosine[first])
        rows = np.flatnonzero(pool.alive)
    for part in _whole_clusters(rows, pool.label[rows]):
        x_ND = pool.vectors(part).all()
        redundancy = cluster_redundancy(
            x_ND,
            pool.label[part],
            state.centroids[0],
            keep=settings.keep,
            seed=pool.recipe.seed,
            dropped_above=settings.cosine,
        )
        drop = np.flatnonzero(redundancy.cosine > settings.cosine)
        _settle_redundant(pool, state, part[drop], part[redundancy.twin[drop]], redundancy.cosine[drop])


def _whole_clusters(rows: np.ndarray, label_R: np.ndarray) -> list[np.ndarray]:
    """Sorted rows in groups of whole clusters, about _GATHER rows a group."""
    order = np.argsort(label_R, kind="stable")
    starts = np.flatnonzero(np.diff(label_R[order], prepend=-2))
    groups, low = [], 0
    for start in [*starts[1:].tolist(), len(order)]:
        if start - low >= _GATHER or start == len(order):
            groups.append(np.sort(rows[order[low:start]]))
            low = start
    return [g for g in groups if len(g)]


def _settle_redundant(
    pool: Pool, state: ClusterState, items: np.ndarray, other: np.ndarray, cosine: np.ndarray
) -> None:
    paths = state.paths(pool.label[items])
    pool.decisions.settle("redundant", items, other=other, cluster=paths, cosine=cosine)


def wanted_items(target: int | float, eligible: int) -> int:
    """A target as a number of items: itself, or a share of the eligible ones."""
    return target if isinstance(target, int) else max(1, round(target * eligible))


def sample(pool: Pool, state: ClusterState, hierarchy: Hierarchy, rows: np.ndarray) -> np.ndarray:
    """Balanced sampling among items alive; settles who is left over. Returns the drawn items, repeats included.

    rows: the items that the hierarchy is over. Leaves the clusters' caps in the state.
    """
    settings = pool.recipe.sample
    eligible_R = pool.alive[rows]
    if settings is None or not eligible_R.any():
        return np.flatnonzero(pool.alive)
    drawn = sample_balanced(
        hierarchy,
        wanted_items(settings.target, int(eligible_R.sum())),
        seed=pool.recipe.seed,
        replacement=settings.replacement,
        within=settings.within,
        eligible_N=eligible_R,
    )
    items = rows[drawn.rows]
    state.cap_K = _caps(state, drawn.quota_K)
    _settle_sampled(pool, state, items, drawn.quota_K, drawn.size_K)
    return items


def _caps(state: ClusterState, quota_K: np.ndarray) -> np.ndarray:
    """What each finest cluster may keep as it grows: the most that any child of its parent was given."""
    if not state.parents:
        return np.full(len(quota_K), quota_K.max(initial=0))
    most = np.zeros(int(state.parents[0].max()) + 1, np.int64)
    np.maximum.at(most, state.parents[0], quota_K)
    return most[state.parents[0]]


def sample_new(pool: Pool, state: ClusterState, kept_K: np.ndarray, sqdist: np.ndarray) -> np.ndarray:
    """Fills clusters with new items up to their caps; settles who is left over. Returns the items taken.

    kept_K: items that each finest cluster keeps already. sqdist: of every item to its centroid, (N,).
    """
    settings = pool.recipe.sample
    rows = np.flatnonzero(pool.alive)
    if settings is None or state.cap_K is None or not len(rows):
        return rows
    luck = sqdist[rows] if settings.within == "nearest" else row_uniform(rows, pool.recipe.seed)
    label = pool.label[rows]
    order = np.lexsort((rows, luck, label))
    turn = np.arange(len(order)) - np.searchsorted(label[order], label[order], side="left")
    room = np.maximum(state.cap_K - kept_K, 0)
    taken = np.sort(rows[order[turn < room[label[order]]]])
    size_K = kept_K + np.bincount(label, minlength=len(kept_K))
    _settle_sampled(pool, state, taken, np.minimum(state.cap_K, size_K), size_K)
    return taken


def _settle_sampled(
    pool: Pool, state: ClusterState, items: np.ndarray, quota_K: np.ndarray, size_K: np.ndarray
) -> None:
    """Kept: stands for its cluster. Left over: its cluster is over-represented."""
    chosen = np.zeros(len(pool.items), bool)
    chosen[items] = True
    for kind, these in (
        ("over_represented", np.flatnonzero(pool.alive & ~chosen)),
        ("balanced", np.flatnonzero(chosen)),
    ):
        label = pool.label[these]
        pool.decisions.settle(kind, these, cluster=state.paths(label), quota=quota_K[label], size=size_K[label])


def spread_rank(pool: Pool, items: np.ndarray) -> np.ndarray:
    """Rank of each chosen item such that every prefix is as balanced over the clusters as it can be: int64 (M,)."""
    luck = row_uniform(items, pool.recipe.seed, salt=7)
    order = np.lexsort((luck, pool.label[items]))
    label = pool.label[items][order]
    turn = np.empty(len(items), np.int64)
    turn[order] = np.arange(len(items)) - np.searchsorted(label, label, side="left")
    rank = np.empty(len(items), np.int64)
    rank[np.lexsort((luck, turn))] = np.arange(len(items))
    return rank


def work_bytes(pool: Pool, key: str, state: ClusterState, hierarchy: Hierarchy, rows: np.ndarray) -> bytes:
    """Clusters of an unfinished run, for one of the same plan to go on from. key: of the plan."""
    buffer = io.BytesIO()
    arrays = {
        "key": np.array(key),
        "state": np.frombuffer(state.to_bytes(), np.uint8),
        "rows": rows,
        "label": pool.label,
        "sqdist": hierarchy.levels[0].sqdist_M,
    }
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def restore_work(pool: Pool, key: str, data: bytes) -> tuple[ClusterState, Hierarchy, np.ndarray] | None:
    """What `work_bytes` kept; None when it is of another plan. Sets pool.label."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        if str(found["key"]) != key:
            return None
        state = ClusterState.from_bytes(found["state"].tobytes())
        rows, pool.label, sqdist = found["rows"], found["label"], found["sqdist"]
    levels = [Level(state.centroids[0], pool.label[rows].astype(np.int32), sqdist)]
    for centroids_KD, parent_K in zip(state.centroids[1:], state.parents):
        # Sampling asks for no distances but those of the items.
        levels.append(Level(centroids_KD, parent_K, np.zeros(len(parent_K), np.float32)))
    return state, Hierarchy(tuple(levels)), rows
