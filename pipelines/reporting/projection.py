"""A map of embeddings: points in the plane whose neighbours are their neighbours in embedding space.

PCA, then a layout of the k-nearest-neighbour graph in the manner of LargeVis (Tang et al. 2016) and UMAP (McInnes et al.
2018): neighbours attract, random pairs repel, both with the gradient of the Cauchy kernel 1 / (1 + d^2).
"""

from __future__ import annotations

import numpy as np

from vfm_ops.curate.kernels import normalised

_NEIGHBOURS, _NEGATIVES = 12, 4


def embedding_map(x_ND: np.ndarray, seed: int = 0, epochs: int = 120) -> np.ndarray:
    """Points float32 (N, 2) within [-1, 1], the same for the same vectors and seed. x_ND: some thousands of vectors."""
    if len(x_ND) < 3:
        return np.zeros((len(x_ND), 2), np.float32)
    x_ND = normalised(x_ND)
    y_N2 = principal_components(x_ND, 2)
    y_N2 /= max(float(np.abs(y_N2).max()), 1e-9)
    if len(x_ND) > 3 * _NEIGHBOURS:
        y_N2 = _lay_out(4.0 * y_N2, *_edges(x_ND), seed, epochs)
    return _framed(y_N2)


def principal_components(x_ND: np.ndarray, count: int) -> np.ndarray:
    """Scores of the first principal components, float32 (N, count); each component's largest loading is positive."""
    centred_ND = x_ND - x_ND.mean(axis=0)
    _, vectors_DD = np.linalg.eigh(centred_ND.T.astype(np.float64) @ centred_ND)
    axes_DC = vectors_DD[:, ::-1][:, :count]
    axes_DC = axes_DC * np.sign(axes_DC[np.abs(axes_DC).argmax(axis=0), np.arange(axes_DC.shape[1])])
    scores_NC = (centred_ND @ axes_DC).astype(np.float32)
    return np.pad(scores_NC, ((0, 0), (0, count - scores_NC.shape[1])))


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
