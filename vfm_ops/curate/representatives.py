"""Who stands for whom: a greedy dominating set of a near-duplicate graph, in order of preference.

Similarity is not transitive: a chain of pictures, each a little different from the next, joins pictures that differ by
far, so that connected components drop an item for one it does not resemble. Here the best item is kept; an item goes only
for a kept neighbour of its own, so that each drop lies within the threshold of what stands for it. This is the
lexicographically first maximal independent set (Blelloch et al. 2012): a function of pairs and order alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vfm_ops.errors import UsageError

PER_ITEM = 64
"""Better neighbours remembered of each item, by preference and by nearness. A thousand frames of a still scene have half
a million pairs, of which each frame needs one; what is forgotten can only keep an item, never drop one."""

_BLOCK = 256
Confirm = Callable[[int, int], bool]


def preference_order(n: int, preference: Sequence[tuple[np.ndarray, str]] = ()) -> np.ndarray:
    """Place of each of n items, the best one 0: int64 (n,).

    preference: columns in order of weight, each with 'max' or 'min', for instance [(pixels, "max"), (age, "min")]; NaN
    ranks last. Ties go to the smallest item number. Raises UsageError for another way, or a column of another length.
    """
    keys: list[np.ndarray] = [np.arange(n)]
    for column_N, way in reversed(list(preference)):
        if way not in ("max", "min"):
            raise UsageError(f"a preference must say 'max' or 'min', not {way!r}")
        column_N = np.asarray(column_N, np.float64)
        if column_N.shape != (n,):
            raise UsageError(f"a preference column has shape {column_N.shape}, but there are {n} items")
        keys.append(-column_N if way == "max" else column_N)
    place_N = np.empty(n, np.int64)
    place_N[np.lexsort(keys)] = np.arange(n)
    return place_N


def better_neighbours(
    pairs: Iterable[tuple[np.ndarray, ...]], place_N: np.ndarray, per_item: int = PER_ITEM
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (worse, better) as places, sorted, each once: of each item the `per_item` best and the `per_item` nearest
    neighbours that are better than it.

    pairs: batches of item numbers i and j, and where there is a third entry, how near they are (more is nearer); they may
    stream, in any order and more than once, and what is held stays below 4 * per_item edges an item and a batch. place_N:
    as from `preference_order`. Raises UsageError for an item number outside 0..n-1.
    """
    n = len(place_N)
    held = _Edges(np.zeros(0, np.int64), np.zeros(0, np.float32))
    waiting, limit = [held], 1 << 22
    for i, j, *rest in pairs:
        if len(i) == 0:
            continue
        if min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n:
            raise UsageError(f"a pair names an item outside 0..{n - 1}: pairs and items do not belong together")
        a, b = place_N[i], place_N[j]
        nearness = np.asarray(rest[0], np.float32) if rest else np.zeros(len(i), np.float32)
        waiting.append(_Edges(np.maximum(a, b) * n + np.minimum(a, b), nearness))
        if sum(len(edges.key) for edges in waiting) > limit:
            waiting = [_thinned(waiting, n, per_item)]
            limit = max(1 << 22, 2 * len(waiting[0].key))
    key = _thinned(waiting, n, per_item).key
    return key // max(n, 1), key % max(n, 1)


class _Edges(NamedTuple):
    """key: worse * n + better, int64 (E,); nearness float32 (E,)."""

    key: np.ndarray
    nearness: np.ndarray


def _thinned(parts: list[_Edges], n: int, per_item: int) -> _Edges:
    """What `better_neighbours` remembers of several batches: exact, whatever the batches are and in which order."""
    key, nearness = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-nearness, key))
    order = order[np.diff(key[order], prepend=-1) != 0]
    order = order[key[order] // max(n, 1) != key[order] % max(n, 1)]
    key, nearness = key[order], nearness[order]
    worse = key // max(n, 1)
    first = np.searchsorted(worse, worse)
    keep = np.arange(len(key)) - first < per_item
    near = np.lexsort((key, -nearness, worse))
    keep[near] |= np.arange(len(key)) - first < per_item
    return _Edges(key[keep], nearness[keep])


def representatives(
    pairs: Iterable[tuple[np.ndarray, ...]],
    place_N: np.ndarray,
    *,
    confirm: Confirm | None = None,
    prepare: Callable[[np.ndarray], None] | None = None,
    fixed_N: np.ndarray | None = None,
    per_item: int = PER_ITEM,
) -> np.ndarray:
    """The item kept in place of each item: int64 (n,); an item is kept where it names itself, else it names its best kept
    neighbour that `confirm(item, kept)` accepts.

    pairs: as for `better_neighbours`. place_N: as from `preference_order`. prepare: told the items that come next, before
    they are confirmed, some hundreds at a time. fixed_N: items that stay whatever their neighbours are, bool (n,).
    """
    n = len(place_N)
    worse, better = better_neighbours(pairs, place_N, per_item)
    item_at = np.empty(n, np.int64)
    item_at[place_N] = np.arange(n)
    stands_N = np.arange(n)
    kept_at = np.ones(n, bool)
    for places in _blocks(worse, better):
        if prepare is not None:
            prepare(item_at[places])
        low, high = np.searchsorted(worse, places, "left"), np.searchsorted(worse, places, "right")
        for place, first, last in zip(places.tolist(), low.tolist(), high.tolist(), strict=True):
            item = int(item_at[place])
            if fixed_N is not None and fixed_N[item]:
                continue
            for candidate in better[first:last].tolist():
                kept = int(item_at[candidate])
                if kept_at[candidate] and (confirm is None or confirm(item, kept)):
                    kept_at[place], stands_N[item] = False, kept
                    break
    return stands_N


def _blocks(worse: np.ndarray, better: np.ndarray) -> Iterator[np.ndarray]:
    """Places of all items that have a neighbour, the best first, some at a time."""
    touched = np.unique(np.concatenate([worse, better]))
    for low in range(0, len(touched), _BLOCK):
        yield touched[low : low + _BLOCK]
