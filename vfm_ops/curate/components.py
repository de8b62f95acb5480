"""Duplicate groups: connected components of a pair graph, and which one of each group to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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


def keep_one(component_N: np.ndarray, preference: Sequence[tuple[np.ndarray, str]] = ()) -> np.ndarray:
    """The item kept in place of each item: int64 (n,); an item is kept where it names itself.

    component_N: as from `connected_components`. preference: columns in order of weight, each with 'max' or 'min', for
    instance [(pixels, "max"), (sharpness, "max"), (age, "min")]; NaN ranks last. Ties go to the smallest item number.
    """
    keys: list[np.ndarray] = [np.arange(len(component_N))]
    for column_N, way in reversed(list(preference)):
        if way not in ("max", "min"):
            raise UsageError(f"a preference must say 'max' or 'min', not {way!r}")
        column_N = np.asarray(column_N, np.float64)
        if column_N.shape != component_N.shape:
            raise UsageError(f"a preference column has shape {column_N.shape}, but there are {len(component_N)} items")
        keys.append(-column_N if way == "max" else column_N)
    keys.append(component_N)
    order = np.lexsort(keys)
    first = np.flatnonzero(np.diff(component_N[order], prepend=-1))
    best = np.repeat(order[first], np.diff(np.append(first, len(order))))
    kept_N = np.empty(len(component_N), np.int64)
    kept_N[order] = best
    return kept_N
