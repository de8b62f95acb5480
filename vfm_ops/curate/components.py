"""Groups of items that are equal, or joined by pairs: connected components, and which one of each group to keep.

For what is transitive only, such as equal bytes. Near-duplicates are not: see `representatives`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vfm_ops.curate.representatives import preference_order
from vfm_ops.errors import UsageError


def connected_components(pairs: Iterable[tuple[np.ndarray, ...]], n: int) -> np.ndarray:
    """Component of each of n items: int64 (n,), the smallest item number in its component.

    pairs: batches whose first two entries are arrays of item numbers (such as `Pairs`); they may stream, one batch is
    held at a time. Singletons are their own component. Raises UsageError for an item number outside 0..n-1.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as components_of

    root_N = np.arange(n)
    for i, j, *_ in pairs:
        if len(i) == 0:
            continue
        if min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n:
            raise UsageError(f"a pair names an item outside 0..{n - 1}: pairs and items do not belong together")
        # Join the components that the batch connects, in a graph of their roots alone.
        roots, flat = np.unique(np.concatenate([root_N[i], root_N[j]]), return_inverse=True)
        half = len(i)
        graph = coo_array((np.ones(half, bool), (flat[:half], flat[half:])), shape=(len(roots), len(roots)))
        _, group = components_of(graph, directed=False)
        smallest = np.full(group.max() + 1, n)
        np.minimum.at(smallest, group, roots)
        target_N = np.arange(n)
        target_N[roots] = smallest[group]
        root_N = target_N[root_N]
    return root_N


def keep_one(group_N: np.ndarray, preference: Sequence[tuple[np.ndarray, str]] = ()) -> np.ndarray:
    """The item kept in place of each item of a group: int64 (n,); an item is kept where it names itself.

    group_N: a number a group, such as `exact_groups` gives. preference: as for `preference_order`.
    """
    order = np.lexsort([preference_order(len(group_N), preference), group_N])
    first = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    best = np.repeat(order[first], np.diff(np.append(first, len(order))))
    kept_N = np.empty(len(group_N), np.int64)
    kept_N[order] = best
    return kept_N
