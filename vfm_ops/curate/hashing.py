"""Duplicates by hash: equal content digests, and perceptual hashes within a Hamming radius.

Multi-index hashing (Norouzi et al. 2012): cut 64 bits into m chunks. Two hashes that differ in at most r bits differ in
at most r // m bits in some chunk (pigeonhole), so it is enough to look among the equal and nearly equal chunks.

Half of a hash's bits are set, as a median splits the coefficients; where they tie, in a flat picture of any colour, few
are. Such a hash tells nothing, and equals that of every other flat picture: it is left out of every search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from vfm_ops.errors import UsageError

_BATCH = 1 << 20
_LEAST_BITS = 16


class HashPairs(NamedTuple):
    """Pairs of items i < j and the bits in which their hashes differ: int64, int64, uint8, each (P,)."""

    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray


def exact_groups(digests: Sequence[bytes | str]) -> np.ndarray:
    """For each item the first item with the same content digest: int64 (N,)."""
    first: dict[bytes | str, int] = {}
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)


def hamming(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Bits in which two uint64 arrays differ: uint8, elementwise."""
    return np.bitwise_count(np.asarray(a_N, np.uint64) ^ np.asarray(b_N, np.uint64))


def telling(hashes: np.ndarray) -> np.ndarray:
    """Which hashes, uint64 (...), are of a picture that has something to see: bool (...)."""
    return np.asarray(np.bitwise_count(np.asarray(hashes, np.uint64)) >= _LEAST_BITS)


def hash_pairs(hashes: np.ndarray, radius: int) -> Iterator[HashPairs]:
    """Streams all pairs of telling hashes at most `radius` bits apart, each once; complete.

    hashes: uint64 (N,), or (N, V) with V variants of an item (the eight dihedral views: rotation- and flip-aware), in
    which case a pair's distance is the least over the views of one against the first view of the other, either way.
    Raises UsageError for a radius outside 0..31.
    """
    hashes = np.asarray(hashes)
    if hashes.dtype != np.uint64 or hashes.ndim not in (1, 2):
        raise UsageError(f"hashes must be uint64, (items,) or (items, views), not {hashes.dtype} {hashes.shape}")
    if not 0 <= radius < 32:
        raise UsageError(f"a Hamming radius on 64 bits must be between 0 and 31, not {radius}")
    if hashes.ndim == 2 and hashes.shape[1] > 1:
        pairs = _view_pairs(hashes, radius)
        if len(pairs.i):
            yield pairs
        return
    flat_N = hashes.reshape(-1)
    for i, j, distance in _probe(flat_N, flat_N, radius):
        keep = i < j
        if keep.any():
            yield HashPairs(i[keep], j[keep], distance[keep])


def _view_pairs(hashes_NV: np.ndarray, radius: int) -> HashPairs:
    """All pairs within the radius over views: a pair may be found from either side, and through several views."""
    views = hashes_NV.shape[1]
    found = [(i, j // views, d) for i, j, d in _probe(hashes_NV[:, 0], hashes_NV.ravel(), radius)]
    ordered = [(np.minimum(i, j)[i != j], np.maximum(i, j)[i != j], d[i != j]) for i, j, d in found]
    return _nearest_of_each(ordered)


def _nearest_of_each(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> HashPairs:
    """Each (i, j) once, with its least distance, sorted."""
    if not found:
        return HashPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    i, j, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((distance, j, i))
    i, j, distance = i[order], j[order], distance[order]
    first = np.flatnonzero((np.diff(i, prepend=-1) != 0) | (np.diff(j, prepend=-1) != 0))
    return HashPairs(i[first], j[first], distance[first])


def match_hashes(query: np.ndarray, reference: np.ndarray, radius: int) -> HashPairs:
    """All (query, reference) pairs of telling hashes at most `radius` bits apart, sorted, each once: i numbers queries, j
    references.

    query: uint64 (N,). reference: uint64 (M,) or (M, V) with V views of an item.
    """
    reference = np.asarray(reference, np.uint64)
    views = 1 if reference.ndim == 1 else reference.shape[1]
    probed = _probe(np.asarray(query, np.uint64), reference.ravel(), radius)
    return _nearest_of_each([(i, j // views, distance) for i, j, distance in probed])


def _probe(left_N: np.ndarray, right_M: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches (left index, right index, distance) of all pairs within the radius, each once.

    A pair is reported by the first chunk in which its two hashes are near enough, and by no later one.
    """
    left_rows, right_rows = np.flatnonzero(telling(left_N)), np.flatnonzero(telling(right_M))
    left_N, right_M = left_N[left_rows], right_M[right_rows]
    bounds = _chunk_bounds(4 if radius >= 4 else radius + 1)
    allowed = radius // len(bounds)
    for turn, (low, width) in enumerate(bounds):
        left_chunk, right_chunk = _chunk(left_N, low, width), _chunk(right_M, low, width)
        order = np.argsort(right_chunk, kind="stable")
        sorted_chunk = right_chunk[order]
        for bits in (b for flips in range(allowed + 1) for b in combinations(range(width), flips)):
            wanted = left_chunk ^ np.uint64(sum(1 << bit for bit in bits))
            start = np.searchsorted(sorted_chunk, wanted, side="left")
            count = np.searchsorted(sorted_chunk, wanted, side="right") - start
            for rows, position in _expand(start, count):
                columns = order[position]
                difference = left_N[rows] ^ right_M[columns]
                near = np.bitwise_count(difference) <= radius
                for earlier in bounds[:turn]:
                    near &= np.bitwise_count(_chunk(difference, *earlier)) > allowed
                if near.any():
                    yield left_rows[rows[near]], right_rows[columns[near]], np.bitwise_count(difference[near])


def _chunk(hashes: np.ndarray, low: int, width: int) -> np.ndarray:
    return (hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)


def _chunk_bounds(chunks: int) -> list[tuple[int, int]]:
    """(lowest bit, width) of each chunk of 64 bits."""
    edges = [64 * c // chunks for c in range(chunks + 1)]
    return [(low, high - low) for low, high in pairwise(edges)]


def _expand(start: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (row, position) for rows that own the ranges [start, start + count), at most about 2^20 at a time."""
    rows = np.flatnonzero(count)
    if not len(rows):
        return
    ends = np.cumsum(count[rows])
    cuts = np.unique(np.searchsorted(ends, np.arange(0, ends[-1] + _BATCH, _BATCH)))
    for low, high in zip(cuts, np.append(cuts[1:], len(rows)), strict=False):
        part = rows[low:high]
        if len(part):
            total = int(count[part].sum())
            offset = np.arange(total) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
            yield np.repeat(part, count[part]), np.repeat(start[part], count[part]) + offset
