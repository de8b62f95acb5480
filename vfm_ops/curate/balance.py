"""Balanced top-down sampling over a hierarchy of clusters (Vo et al. 2024, section 3.4).

At each node the target is spread over the children as evenly as their sizes allow: every child gets min(size, cap),
the cap being the same for all. Children get their quota, then spread it over their own children, down to the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vfm_ops.curate.blocks import row_uniform
from vfm_ops.curate.hierarchy import Hierarchy
from vfm_ops.errors import UsageError

WITHIN = ("random", "nearest")


@dataclass(frozen=True)
class BalancedSample:
    """rows int64 (target,), sorted (with repeats if drawn with replacement); quota and size of each finest cluster."""

    rows: np.ndarray
    quota_K: np.ndarray
    size_K: np.ndarray


def water_level(size_K: np.ndarray, target: int) -> int:
    """The largest cap c with sum(min(size, c)) <= target, found by bisection. Needs 0 <= target < sum(size)."""
    low, high = 0, int(size_K.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(size_K, middle).sum()) <= target:
            low = middle
        else:
            high = middle - 1
    return low


def spread(size_K: np.ndarray, target: int, order_K: np.ndarray) -> np.ndarray:
    """Quotas, as even as the sizes allow, that sum to target exactly: int64 (K,).

    order_K: who comes first when the last few can't be shared evenly (smallest first). Raises UsageError when the
    target is larger than sum(size).
    """
    size_K = np.asarray(size_K, np.int64)
    total = int(size_K.sum())
    if target > total:
        raise UsageError(f"a sample of {target} was asked for, but only {total} items are eligible: lower the target")
    cap = water_level(size_K, target)
    quota_K = np.minimum(size_K, cap)
    open_K = np.flatnonzero(size_K > cap)
    extra = open_K[np.argsort(order_K[open_K], kind="stable")][: target - int(quota_K.sum())]
    quota_K[extra] += 1
    return quota_K


def sample_balanced(
    hierarchy: Hierarchy,
    target: int,
    *,
    seed: int = 0,
    replacement: bool = False,
    within: str = "random",
    eligible_N: np.ndarray | None = None,
) -> BalancedSample:
    """`target` rows, spread evenly over the clusters of every level.

    replacement: quotas ignore how many rows a cluster has, and rows may repeat. within: 'random' rows of a cluster, or
    those 'nearest' to its centroid. eligible_N: bool (N,), rows that may be drawn; all when None. Deterministic for a
    seed; a row's luck depends on the seed and its number only. Raises UsageError for a target beyond the eligible rows.
    """
    if within not in WITHIN:
        raise UsageError(f"within must be one of {', '.join(WITHIN)}, not {within!r}")
    if target < 1:
        raise UsageError(f"the target must be 1 or more, not {target}")
    finest = hierarchy.levels[0]
    eligible_N = np.ones(len(finest.labels_M), bool) if eligible_N is None else np.asarray(eligible_N, bool)
    if len(eligible_N) != len(finest.labels_M):
        raise UsageError(f"eligible has {len(eligible_N)} entries, but the hierarchy has {len(finest.labels_M)} rows")
    size_K = np.bincount(finest.labels_M[eligible_N], minlength=len(finest.centroids_KD))
    capacity_K = np.where(size_K > 0, target, 0) if replacement else size_K
    quota_K = _quotas(hierarchy, capacity_K, target, seed)
    rank_N = finest.sqdist_M if within == "nearest" else row_uniform(np.arange(len(eligible_N)), seed)
    rows = _draw(finest.labels_M, rank_N, eligible_N, quota_K)
    return BalancedSample(np.sort(rows), quota_K, size_K)


def _quotas(hierarchy: Hierarchy, capacity_K: np.ndarray, target: int, seed: int) -> np.ndarray:
    """Quotas of the finest clusters: spread over the coarsest level first, then within each cluster downwards."""
    capacities = [capacity_K]
    for level in hierarchy.levels[1:]:
        sums_K = np.bincount(level.labels_M, weights=capacities[-1], minlength=len(level.centroids_KD))
        capacities.append(sums_K.astype(np.int64))
    lots = [row_uniform(np.arange(len(c)), seed, salt=depth + 1) for depth, c in enumerate(capacities)]
    quota_K = spread(capacities[-1], target, lots[-1])
    for depth in range(len(capacities) - 2, -1, -1):
        parent_K = hierarchy.levels[depth + 1].labels_M
        children = np.split(
            np.argsort(parent_K, kind="stable"), np.cumsum(np.bincount(parent_K, minlength=len(quota_K)))[:-1]
        )
        below_K = np.zeros(len(parent_K), np.int64)
        for quota, members in zip(quota_K, children, strict=True):
            below_K[members] = spread(capacities[depth][members], int(quota), lots[depth][members])
        quota_K = below_K
    return quota_K


def _draw(label_N: np.ndarray, rank_N: np.ndarray, eligible_N: np.ndarray, quota_K: np.ndarray) -> np.ndarray:
    """The first quota[k] eligible rows of each cluster by rank, going round again where the quota exceeds them."""
    rows = np.flatnonzero(eligible_N)
    order = rows[np.lexsort((rows, rank_N[rows], label_N[rows]))]
    size_K = np.bincount(label_N[rows], minlength=len(quota_K))
    start_K = np.cumsum(size_K) - size_K
    turn = np.arange(int(quota_K.sum())) - np.repeat(np.cumsum(quota_K) - quota_K, quota_K)
    return order[np.repeat(start_K, quota_K) + turn % np.repeat(np.maximum(size_K, 1), quota_K)]
