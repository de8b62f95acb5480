"""Nearest rows of a stream for a set of query vectors: exact, block by block, top-k or everything above a threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vfm_ops.curate.blocks import Block, BlockStep, MapBlocks, check_vectors, run_step
from vfm_ops.curate.kernels import normalised
from vfm_ops.errors import UsageError

_TILE = 2048


def check_same_space(
    what: str, dim: int, data_dim: int, digest: str | None = None, data_digest: str | None = None
) -> None:
    """Raises UsageError unless two sets of vectors live in one embedding space: same dimension, same model digest."""
    if dim != data_dim:
        raise UsageError(
            f"{what} has vectors of dimension {dim}, but the data has {data_dim}: embed both with the same model"
        )
    if digest is not None and data_digest is not None and digest != data_digest:
        raise UsageError(
            f"{what} was embedded by model {digest}, but the data by {data_digest}: embed both with the same model"
        )


class TopK(NamedTuple):
    """For each query its nearest rows, the nearest first: rows int64 (Q, k), cosine float32 (Q, k).

    Places beyond the number of rows hold row -1 and cosine -inf.
    """

    rows: np.ndarray
    cosine: np.ndarray


class _Search(NamedTuple):
    query_QD: np.ndarray
    k: int
    threshold: float


def _top(block: Block, search: _Search) -> TopK:
    x_ND = normalised(block.x_ND)
    check_same_space("the query", search.query_QD.shape[1], x_ND.shape[1])
    none = np.full((len(search.query_QD), search.k), -np.inf, np.float32)
    best = TopK(np.full(none.shape, -1, np.int64), none)
    for low in range(0, len(x_ND), _TILE):
        score_QT = search.query_QD @ x_ND[low : low + _TILE].T
        k = min(search.k, score_QT.shape[1])
        column = np.argpartition(-score_QT, k - 1, axis=1)[:, :k]
        found = TopK(column + block.start + low, np.take_along_axis(score_QT, column, axis=1))
        best = _merge_top(best, found)
    return best


def _merge_top(a: TopK, b: TopK) -> TopK:
    k = max(a.rows.shape[1], b.rows.shape[1])
    rows, cosine = np.concatenate([a.rows, b.rows], axis=1), np.concatenate([a.cosine, b.cosine], axis=1)
    order = np.lexsort((rows, -cosine), axis=1)[:, :k]
    return TopK(np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosine, order, axis=1))


TOP = BlockStep(_top, _merge_top)


def nearest_rows_of(map_blocks: MapBlocks, query_QD: np.ndarray, k: int) -> TopK:
    """The k nearest rows by cosine for each query, over all blocks.

    Raises UsageError for NaN or zero queries, another dimension, or k below 1.
    """
    if k < 1:
        raise UsageError(f"the number of neighbours must be 1 or more, not {k}")
    check_vectors(query_QD, "cosine")
    return run_step(map_blocks, TOP, _Search(normalised(query_QD), k, 0.0))


def _within(block: Block, search: _Search) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    x_ND = normalised(block.x_ND)
    check_same_space("the query", search.query_QD.shape[1], x_ND.shape[1])
    found: list[Any] = []
    for low in range(0, len(x_ND), _TILE):
        score_TQ = x_ND[low : low + _TILE] @ search.query_QD.T
        row, query = np.nonzero(score_TQ >= search.threshold)
        if len(row):
            found.append((row + block.start + low, query, score_TQ[row, query]))
    return found


WITHIN = BlockStep(_within, lambda a, b: a + b)


def rows_within(
    map_blocks: MapBlocks, query_QD: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All (row, query, cosine) with cosine >= threshold, by row, then query: int64, int64, float32."""
    check_vectors(query_QD, "cosine")
    found = run_step(map_blocks, WITHIN, _Search(normalised(query_QD), 0, threshold)) or []
    return sorted_pairs(found)


def sorted_pairs(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of (first, second, cosine) as one, by the first, then the second: int64, int64, float32 (N,) each."""
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    first, second, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((second, first))
    return first[order], second[order], cosine[order]
