"""Hierarchical k-means with resampling (Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning").

k-means puts its centroids where the data is dense. Resampling undoes that: take the r rows nearest to each centroid, so
that every cluster weighs the same, cluster *them* anew, assign all rows to the result, and repeat. Each turn flattens
the density that the centroids follow. The next level clusters the centroids of the one below in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vfm_ops.curate.blocks import MapBlocks, Source, local_map, take_rows
from vfm_ops.curate.kmeans import KMeansOptions, assign, available_cores, kmeans
from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class HierarchyOptions:
    """How a hierarchy is built.

    clusters: number of clusters a level, the finest first. resamplings: m, turns of resampling a level. nearest: r, rows
    kept a cluster in a resampling, one number a level; None takes half the mean cluster size, between 2 and 15.
    kmeans: options of the first clustering of a level; resampling_iterations: of those on the resampled rows.
    """

    clusters: tuple[int, ...]
    resamplings: int = 10
    nearest: tuple[int, ...] | None = None
    kmeans: KMeansOptions = field(default_factory=lambda: KMeansOptions(iterations=50))
    resampling_iterations: int = 20

    def __post_init__(self) -> None:
        if not self.clusters or any(k < 1 for k in self.clusters):
            raise UsageError(f"a hierarchy needs one positive number of clusters a level, not {self.clusters}")
        if any(fine <= coarse for fine, coarse in zip(self.clusters, self.clusters[1:], strict=False)):
            raise UsageError(f"levels go from fine to coarse, so clusters must decrease, but they are {self.clusters}")
        if self.nearest is not None and len(self.nearest) != len(self.clusters):
            raise UsageError(f"nearest needs one number a level ({len(self.clusters)}), but has {len(self.nearest)}")


@dataclass(frozen=True)
class Level:
    """One level: clusters of the items of the level below (rows, for the finest).

    centroids float32 (K, D); labels int32 (M,), the cluster of each item below; sqdist float32 (M,), to its centroid.
    No cluster is empty.
    """

    centroids_KD: np.ndarray
    labels_M: np.ndarray
    sqdist_M: np.ndarray


@dataclass(frozen=True)
class Hierarchy:
    """Levels, the finest first."""

    levels: tuple[Level, ...]

    def paths(self) -> np.ndarray:
        """Clusters of every row from the coarsest level to the finest: int32 (N, levels)."""
        column_N = self.levels[0].labels_M
        columns = [column_N]
        for level in self.levels[1:]:
            column_N = level.labels_M[column_N]
            columns.append(column_N)
        return np.stack(columns[::-1], axis=1).astype(np.int32)


def build_hierarchy(
    source: Source | None, options: HierarchyOptions, *, map_blocks: MapBlocks | None = None
) -> Hierarchy:
    """Clusters rows, then centroids, level by level, resampling in each.

    source, map_blocks: as in `kmeans`; only the finest level runs over the blocks. Raises UsageError like `kmeans`.
    """
    if map_blocks is None:
        if source is None:
            raise UsageError("a hierarchy needs vectors: give an array, a callable that yields arrays, or map_blocks")
        map_blocks = local_map(source, options.kmeans.workers or available_cores())
    levels: list[Level] = []
    for depth, k in enumerate(options.clusters):
        if levels:
            below_KD = levels[-1].centroids_KD
            if k > len(below_KD):
                raise UsageError(
                    f"level {depth + 1} asks for {k} clusters, but level {depth} has only {len(below_KD)} that are not empty"
                )
            map_blocks = local_map(below_KD, options.kmeans.workers or available_cores())
        levels.append(_build_level(map_blocks, k, depth, options))
    return Hierarchy(tuple(levels))


def _build_level(map_blocks: MapBlocks, k: int, depth: int, options: HierarchyOptions) -> Level:
    first = replace(options.kmeans, seed=options.kmeans.seed + 1000 * depth)
    result = kmeans(None, k, first, map_blocks=map_blocks)
    centroids_KD, labels_N, sqdist_N = result.centroids_KD, result.labels_N, result.sqdist_N
    nearest = options.nearest[depth] if options.nearest else int(np.clip(round(0.5 * len(labels_N) / k), 2, 15))
    for turn in range(options.resamplings):
        rows = nearest_rows(labels_N, sqdist_N, nearest)
        again = replace(first, seed=first.seed + 1 + turn, iterations=options.resampling_iterations)
        kept_RD = take_rows(map_blocks, rows)
        if k > len(kept_RD):
            break
        centroids_KD = kmeans(kept_RD, k, again).centroids_KD
        precision = "exact" if turn == options.resamplings - 1 else options.kmeans.precision
        labels_N, sqdist_N = assign(map_blocks, centroids_KD, options.kmeans, precision)
    used_K, labels_N = np.unique(labels_N, return_inverse=True)
    return Level(centroids_KD[used_K], labels_N.astype(np.int32), sqdist_N)


def nearest_rows(labels_N: np.ndarray, sqdist_N: np.ndarray, nearest: int) -> np.ndarray:
    """The `nearest` rows closest to the centroid in each cluster (all, where it has fewer): sorted row numbers."""
    order = np.lexsort((sqdist_N, labels_N))
    sorted_N = labels_N[order]
    start_N = np.searchsorted(sorted_N, sorted_N, side="left")
    return np.sort(order[np.arange(len(order)) - start_N < nearest])
