"""Pairs of neighbouring vectors in a lake: among all of them, part by part when they are many; or of new ones with old ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.curation.pool import Pool
from pipelines.curation.vectors import Vectors
from vfm_ops.curate.blocks import Block, BlockStep, sample_rows
from vfm_ops.curate.kernels import normalised
from vfm_ops.curate.kmeans import KMeansOptions, kmeans
from vfm_ops.curate.neighbours import NeighbourOptions, Pairs, near_duplicate_pairs
from vfm_ops.curate.retrieval import rows_within, sorted_pairs

IN_MEMORY_ROWS = 400_000
_PROBES = 8
"""Cells in which a new vector looks for old neighbours: its own, and the nearest others."""


def semantic_pairs(vectors: Vectors, threshold: float, options: NeighbourOptions) -> Iterator[Pairs]:
    """Pairs of rows with cosine >= threshold. More than IN_MEMORY_ROWS are cut into overlapping parts, one in memory at a time.

    A pair may come twice, from two parts.
    """
    if len(vectors) <= IN_MEMORY_ROWS:
        yield from near_duplicate_pairs(vectors.all(), threshold, options)
        return
    for rows in _parts(vectors, threshold, options):
        if len(rows) > 1:
            for pairs in near_duplicate_pairs(vectors.take(rows), threshold, options):
                yield Pairs(rows[pairs.i], rows[pairs.j], pairs.cosine)


class _Cut(NamedTuple):
    centroids_KD: np.ndarray
    chord: float


def _memberships(block: Block, cut: _Cut) -> list[tuple[np.ndarray, np.ndarray]]:
    """(row, part) of the nearest centroid, and of each whose border lies within the chord."""
    c_KD = cut.centroids_KD
    score_NK = normalised(block.x_ND) @ c_KD.T - 0.5 * np.einsum("kd,kd->k", c_KD, c_KD)
    own_N = score_NK.argmax(axis=1)
    gap_KK = np.sqrt(np.maximum(((c_KD[:, None] - c_KD[None]) ** 2).sum(axis=2), 0.0))
    beyond_NK = score_NK[np.arange(len(own_N)), own_N][:, None] - score_NK
    row, part = np.nonzero(beyond_NK <= cut.chord * gap_KK[own_N])
    return [(row + block.start, part)]


MEMBERS = BlockStep(_memberships, lambda a, b: a + b)


def _parts(vectors: Vectors, threshold: float, options: NeighbourOptions) -> Iterator[np.ndarray]:
    """Sorted rows of each part; rows near a border are in several."""
    count = int(np.ceil(2 * len(vectors) / IN_MEMORY_ROWS))
    sample_ND = vectors.take(sample_rows(len(vectors), max(4096, 256 * count), options.seed))
    settings = KMeansOptions(
        metric="cosine", iterations=10, seed=options.seed, workers=options.workers, precision="exact"
    )
    chord = options.reach * float(np.sqrt(max(0.0, 2.0 - 2.0 * threshold))) + 1e-6
    cut = _Cut(kmeans(sample_ND, count, settings).centroids_KD, chord)
    found = [pair for partial in vectors.map_blocks(MEMBERS, cut) for pair in partial]
    row, part = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((row, part))
    yield from np.split(row[order], np.cumsum(np.bincount(part, minlength=count))[:-1])


class _Query(NamedTuple):
    """New vectors by the cells that they look into: query rows sorted by cell, and where each cell's begin."""

    x_QD: np.ndarray
    query: np.ndarray
    start_K: np.ndarray
    label_N: np.ndarray
    threshold: float


def _within_cells(block: Block, search: _Query) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(old row, new row, cosine) above the threshold, of old rows in the cells that the new ones look into."""
    label_N = search.label_N[block.start : block.start + len(block.x_ND)]
    order = np.argsort(label_N, kind="stable")
    cells, first = np.unique(label_N[order], return_index=True)
    x_ND = normalised(block.x_ND)
    found = []
    for cell, rows in zip(cells.tolist(), np.split(order, first[1:]), strict=True):
        asking = search.query[search.start_K[cell] : search.start_K[cell + 1]] if cell >= 0 else search.query[:0]
        if not len(asking):
            continue
        score = x_ND[rows] @ search.x_QD[asking].T
        old, new = np.nonzero(score >= search.threshold)
        found.append((rows[old] + block.start, asking[new], score[old, new]))
    return found


CELLS = BlockStep(_within_cells, lambda a, b: a + b)


def old_neighbours(
    new: Vectors, old: Vectors, label_N: np.ndarray, centroids_KD: np.ndarray, threshold: float, probes: int = _PROBES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(new row, old row, cosine) with cosine >= threshold, sorted. label_N: the finest cluster of each old row."""
    x_QD = normalised(new.all())
    probes = min(probes, len(centroids_KD))
    near_QP = np.concatenate(
        [_nearest_cells(x_QD[i : i + 4096], centroids_KD, probes) for i in range(0, len(x_QD), 4096)]
    )
    order = np.argsort(near_QP.ravel(), kind="stable")
    start_K = np.searchsorted(near_QP.ravel()[order], np.arange(len(centroids_KD) + 1))
    search = _Query(x_QD, order // probes, start_K, label_N, threshold)
    found = [part for partial in old.map_blocks(CELLS, search) for part in partial]
    return sorted_pairs([(newer, older, cosine) for older, newer, cosine in found])


def _nearest_cells(x_QD: np.ndarray, centroids_KD: np.ndarray, count: int) -> np.ndarray:
    score_QK = x_QD @ centroids_KD.T - 0.5 * np.einsum("kd,kd->k", centroids_KD, centroids_KD)
    return np.argpartition(-score_QK, count - 1, axis=1)[:, :count]


def new_pairs(pool: Pool, threshold: float) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """Items alive or standing, and the pairs (places in that list) above the threshold that hold a new one."""
    rows = np.flatnonzero((pool.alive | pool.standing) & pool.has_vector)
    new, old = np.flatnonzero(pool.alive[rows]), np.flatnonzero(pool.standing[rows])
    if not len(new):
        return rows, []
    fresh, stood = pool.vectors(rows[new]), pool.vectors(rows[old])
    options = NeighbourOptions(seed=pool.recipe.seed, workers=pool.recipe.resources.workers)
    among: list[tuple[np.ndarray, ...]] = []
    if len(new) > 1:
        among += [(new[p.i], new[p.j]) for p in semantic_pairs(fresh, threshold, options)]
    if pool.centroids is not None:
        n, o, _ = old_neighbours(fresh, stood, pool.label[rows[old]], pool.centroids, threshold)
        return rows, [*among, (new[n], old[o])]
    x_QD = fresh.all()
    for low in range(0, len(x_QD), 4096):
        o, n, _ = rows_within(stood.map_blocks, x_QD[low : low + 4096], threshold)
        among.append((new[n + low], old[o]))
    return rows, among
