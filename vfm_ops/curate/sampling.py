"""Selections that start from what is there: pruning of semantic duplicates, and retrieval around a curated seed set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vfm_ops.curate.blocks import MapBlocks, check_vectors, row_uniform
from vfm_ops.curate.kernels import assign_block, normalised
from vfm_ops.curate.retrieval import check_same_space, nearest_rows_of
from vfm_ops.errors import UsageError

KEEP = ("far", "near", "random")


class Redundancy(NamedTuple):
    """For each row: its highest cosine to a row of its cluster that ranks before it (-1 for the first), and which row.

    cosine float32 (N,); twin int64 (N,), -1 for the first of a cluster.
    """

    cosine: np.ndarray
    twin: np.ndarray


def cluster_redundancy(
    x_ND: np.ndarray,
    label_N: np.ndarray,
    centroids_KD: np.ndarray,
    *,
    keep: str = "far",
    seed: int = 0,
    dropped_above: float | None = None,
) -> Redundancy:
    """SemDeDup (Abbas et al. 2023, section 3.2): how much of each row its own cluster says already.

    dropped_above: rows with a higher cosine will be dropped, so that they are nobody's twin: a row is compared with those
    before it that stay. None is the paper's way, where a row may go for one that went itself.

    keep: which rows rank first in a cluster and so are kept: 'far' from the centroid (the paper's choice: the least
    typical), 'near', or 'random'. Drop the rows whose cosine reaches 1 - epsilon: `semantic_duplicates` does.
    """
    if keep not in KEEP:
        raise UsageError(f"keep must be one of {', '.join(KEEP)}, not {keep!r}")
    check_vectors(x_ND, "cosine")
    check_same_space("the clusters", centroids_KD.shape[1], x_ND.shape[1])
    centroid_KD = normalised(centroids_KD)
    cosine_N, twin_N = np.full(len(x_ND), -1.0, np.float32), np.full(len(x_ND), -1, np.int64)
    order = np.argsort(label_N, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(label_N[order])) + 1):
        if not len(rows):
            continue
        members_ND = normalised(x_ND[rows])
        typical = members_ND @ centroid_KD[label_N[rows[0]]]
        rank = {"far": typical, "near": -typical, "random": row_uniform(rows, seed)}[keep]
        first = np.lexsort((rows, rank))
        rows, members_ND = rows[first], members_ND[first]
        gone = np.zeros(len(rows), bool)
        for low in range(0, len(rows), 1024):
            score = members_ND[low : low + 1024] @ members_ND[: low + 1024].T
            score[np.arange(len(score))[:, None] + low <= np.arange(score.shape[1])] = -1.0
            if dropped_above is not None:
                _leave_out_dropped(score, gone, low, dropped_above)
            best = score.argmax(axis=1)
            part = rows[low : low + 1024]
            cosine_N[part] = score[np.arange(len(score)), best]
            twin_N[part] = np.where(cosine_N[part] > -1.0, rows[best], -1)
    return Redundancy(cosine_N, twin_N)


def _leave_out_dropped(score: np.ndarray, gone: np.ndarray, low: int, limit: float) -> None:
    """Sets the columns of dropped rows to -1, row after row: whether one is dropped hangs on those before it. score: of
    rows low, low + 1, ... to all up to the last of them; gone, bool, of all rows, is filled in."""
    score[:, gone[: score.shape[1]]] = -1.0
    for place in np.flatnonzero(score.max(axis=1) > limit):
        if score[place].max() > limit:
            gone[low + place] = True
            score[place + 1 :, low + place] = -1.0


def semantic_duplicates(redundancy: Redundancy, epsilon: float) -> np.ndarray:
    """Rows to drop, bool (N,): those with cosine above 1 - epsilon to an earlier row of their cluster."""
    if not 0.0 <= epsilon <= 2.0:
        raise UsageError(f"epsilon is 1 - cosine, so it must be between 0 and 2, not {epsilon}")
    return redundancy.cosine > 1.0 - epsilon


class Retrieved(NamedTuple):
    """Retrieved rows, sorted, each once: int64 (R,); the seed that brought each, int64 (R,); cosine float32 (R,)."""

    rows: np.ndarray
    seed: np.ndarray
    cosine: np.ndarray


def retrieve_nearest(map_blocks: MapBlocks, seed_SD: np.ndarray, k: int = 4) -> Retrieved:
    """DINOv2's retrieval for large seed sets: the k nearest rows of each seed, without repeats (section 3).

    A row found by several seeds belongs to the nearest. Raises UsageError when dimensions differ.
    """
    top = nearest_rows_of(map_blocks, seed_SD, k)
    seed = np.repeat(np.arange(len(seed_SD)), top.rows.shape[1])
    rows, cosine = top.rows.ravel(), top.cosine.ravel()
    order = np.lexsort((seed, -cosine, rows))
    order = order[rows[order] >= 0]
    first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    return Retrieved(rows[first], seed[first], cosine[first])


def retrieve_clusters(
    seed_SD: np.ndarray,
    centroids_KD: np.ndarray,
    label_N: np.ndarray,
    *,
    metric: str = "cosine",
    min_seeds: int = 1,
    per_cluster: int | None = None,
    seed: int = 0,
) -> Retrieved:
    """DINOv2's retrieval for small seed sets: the rows of every cluster into which at least min_seeds seeds fall.

    per_cluster: at most so many rows of a cluster, at random; None takes it whole. The seed named for a row is the one
    nearest to the cluster's centroid; cosine is NaN, as rows and seeds are not compared.
    """
    check_vectors(seed_SD, metric)
    check_same_space("the seed set", seed_SD.shape[1], centroids_KD.shape[1])
    seed_label_S, square_S = assign_block(seed_SD, centroids_KD, metric=metric)
    hits_K = np.bincount(seed_label_S, minlength=len(centroids_KD))
    herald_K = np.full(len(centroids_KD), -1, np.int64)
    for s in np.argsort(-square_S, kind="stable"):
        herald_K[seed_label_S[s]] = s
    rows = np.flatnonzero(hits_K[label_N] >= max(1, min_seeds))
    if per_cluster is not None:
        order = rows[np.lexsort((row_uniform(rows, seed), label_N[rows]))]
        start = np.searchsorted(label_N[order], label_N[order], side="left")
        rows = np.sort(order[np.arange(len(order)) - start < per_cluster])
    return Retrieved(rows, herald_K[label_N[rows]], np.full(len(rows), np.nan, np.float32))
