"""Embeddings in the plane: points whose neighbours there are their neighbours by cosine, for the report and the page.

Principal components, then a layout of the k-nearest-neighbour graph in the manner of LargeVis (Tang et al. 2016) and UMAP
(McInnes et al. 2018): neighbours attract, random pairs repel, both with the gradient of the Cauchy kernel 1 / (1 + d^2).
"""

from __future__ import annotations

import numpy as np

from vfm_ops.curate.kernels import normalised

_NEIGHBOURS, _NEGATIVES = 12, 4


def project(x_ND: np.ndarray, seed: int = 0, epochs: int = 120) -> np.ndarray:
    """Points float32 (N, 2) within [-1, 1], the same for the same vectors and seed.

    x_ND: some thousands of vectors, float; their lengths do not matter. Fewer than three all lie in the middle.
    """
    if len(x_ND) < 3:
        return np.zeros((len(x_ND), 2), np.float32)
    x_ND = normalised(x_ND)
    y_N2 = principal_components(x_ND, 2)
    y_N2 /= max(float(np.abs(y_N2).max()), 1e-9)
    if len(x_ND) > 3 * _NEIGHBOURS:
        y_N2 = _lay_out(4.0 * y_N2, *_edges(x_ND), seed, epochs)
    return _framed(y_N2)


def place_among(x_ND: np.ndarray, placed_MD: np.ndarray, y_M2: np.ndarray) -> np.ndarray:
    """Where further vectors lie in a map: float64 (N, 2), the weighted mean of their three nearest placed ones.

    x_ND, placed_MD: unit vectors. y_M2: the places of the latter, as `project` gave them.
    """
    out = np.empty((len(x_ND), 2))
    few = min(3, len(placed_MD))
    for start in range(0, len(x_ND), 2048):
        similar = x_ND[start : start + 2048] @ placed_MD.T
        nearest = np.argpartition(-similar, few - 1, axis=1)[:, :few]
        chosen = np.take_along_axis(similar, nearest, 1)
        weights = np.exp(20 * (chosen - chosen.max(1, keepdims=True)))[..., None]
        out[start : start + 2048] = (y_M2[nearest] * weights).sum(1) / weights.sum(1)
    return out


def principal_components(x_ND: np.ndarray, count: int) -> np.ndarray:
    """Scores of the first principal components, float32 (N, count), zeros beyond the dimension.

    Each component's largest loading is positive.
    """
    from scipy.linalg import eigh

    centred_ND = np.asarray(x_ND, np.float64) - x_ND.mean(axis=0, dtype=np.float64)
    dim = centred_ND.shape[1]
    found = min(count, dim)
    _, axes_DC = eigh(centred_ND.T @ centred_ND, subset_by_index=(dim - found, dim - 1))
    axes_DC = axes_DC[:, ::-1]
    axes_DC = axes_DC * np.sign(axes_DC[np.abs(axes_DC).argmax(axis=0), np.arange(found)])
    return np.pad((centred_ND @ axes_DC).astype(np.float32), ((0, 0), (0, count - found)))


def _edges(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of every row's edges to its nearest neighbours, by cosine."""
    heads = []
    for low in range(0, len(x_ND), 1024):
        score = x_ND[low : low + 1024] @ x_ND.T
        score[np.arange(len(score)), np.arange(low, low + len(score))] = -np.inf
        heads.append(np.argpartition(-score, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS])
    return np.repeat(np.arange(len(x_ND)), _NEIGHBOURS), np.concatenate(heads).ravel()


def _lay_out(y_N2: np.ndarray, tail: np.ndarray, head: np.ndarray, seed: int, epochs: int) -> np.ndarray:
    """Gradient steps that shrink linearly; each edge pulls, and each point is pushed by random others."""
    rng = np.random.default_rng(seed)
    y_N2 = y_N2 + 1e-3 * rng.standard_normal(y_N2.shape)
    for epoch in range(epochs):
        rate = 0.5 * (1.0 - epoch / epochs)
        step_N2 = np.zeros_like(y_N2)
        gap_E2 = y_N2[tail] - y_N2[head]
        pull_E2 = gap_E2 * (2.0 / (1.0 + (gap_E2**2).sum(axis=1)))[:, None]
        step_N2 -= _summed(tail, pull_E2, len(y_N2)) - _summed(head, pull_E2, len(y_N2))
        for _ in range(_NEGATIVES):
            gap_N2 = y_N2 - y_N2[rng.permutation(len(y_N2))]
            square_N = (gap_N2**2).sum(axis=1)
            push_N2 = gap_N2 * (2.0 / ((0.05 + square_N) * (1.0 + square_N)))[:, None]
            step_N2 += 0.5 * _NEIGHBOURS * push_N2
        y_N2 = y_N2 + rate * np.clip(step_N2 / _NEIGHBOURS, -2.0, 2.0)
    return y_N2


def _summed(index: np.ndarray, values_E2: np.ndarray, count: int) -> np.ndarray:
    return np.stack([np.bincount(index, weights=values_E2[:, axis], minlength=count) for axis in (0, 1)], axis=1)


def _framed(y_N2: np.ndarray) -> np.ndarray:
    """Scaled to [-1, 1], each axis halfway to its ranks: what is dense gets room, gaps shrink, and no order changes."""
    low, high = np.percentile(y_N2, [0.5, 99.5], axis=0)
    straight_N2 = np.clip((y_N2 - (low + high) / 2.0) / max(float((high - low).max()) / 2.0, 1e-9), -1.0, 1.0)
    rank_N2 = np.argsort(np.argsort(y_N2, axis=0, kind="stable"), axis=0, kind="stable")
    even_N2 = 2.0 * rank_N2 / max(1, len(y_N2) - 1) - 1.0
    return (0.4 * straight_N2 + 0.6 * even_N2).astype(np.float32)
