"""Where k-means starts: k-means++, scalable k-means|| and plain random rows, on a sample that fits one machine."""

from __future__ import annotations

import numpy as np

from vfm_ops.curate.blocks import one_torch_thread, row_uniform
from vfm_ops.curate.kernels import assign_block
from vfm_ops.errors import UsageError

_GRAM_ROWS = 6000
INITS = ("auto", "k-means++", "k-means||", "random")


def initial_centroids(
    x_ND: np.ndarray, k: int, init: str = "auto", seed: int = 0, precision: str = "exact"
) -> np.ndarray:
    """k distinct rows of x to start from, float32 (k, D).

    x_ND: float32, at least k rows. init: one of `INITS`; 'auto' is k-means++ where its k passes are cheap, else
    k-means||. Deterministic for a seed. Raises UsageError for an unknown init.
    """
    if init not in INITS:
        raise UsageError(f"init must be one of {', '.join(INITS)}, or an array of centroids, not {init!r}")
    if init == "auto":
        init = "k-means++" if len(x_ND) * x_ND.shape[1] * k <= 2e9 else "k-means||"
    rng = np.random.default_rng(seed)
    if init == "random":
        return x_ND[np.sort(rng.choice(len(x_ND), k, replace=False))]
    if init == "k-means++":
        return x_ND[kmeans_plus_plus(x_ND, np.ones(len(x_ND)), k, rng)]
    return scalable_kmeans(x_ND, k, rng, precision=precision)


def kmeans_plus_plus(x_ND: np.ndarray, weight_N: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of k rows drawn in turn with probability proportional to weight * D(x)^2 (Arthur & Vassilvitskii 2007).

    D(x): distance to the nearest row drawn so far. When every distance is 0 (fewer distinct rows than k) the rest is
    drawn by weight among the rows not yet taken. Returns int64 (k,), distinct.
    """
    square_N = np.einsum("nd,nd->n", x_ND, x_ND)
    # One matrix product for all pairs where it fits: k matrix-vector products are bound by memory.
    gram_NN = x_ND @ x_ND.T if len(x_ND) <= _GRAM_ROWS else None
    weight_N = np.asarray(weight_N, np.float64)
    free_N = np.ones(len(x_ND), bool)
    nearest_N = np.full(len(x_ND), np.inf, np.float32)
    picks = np.empty(k, np.int64)
    mass_N = weight_N
    for i in range(k):
        picks[i] = pick = _draw(mass_N, weight_N * free_N, rng)
        free_N[pick] = False
        inner_N = gram_NN[pick] if gram_NN is not None else x_ND @ x_ND[pick]
        gap_N = square_N - 2.0 * inner_N + square_N[pick]
        np.minimum(nearest_N, np.maximum(gap_N, 0.0), out=nearest_N)
        # Rounding leaves crumbs where the distance is 0; they must not be drawn.
        mass_N = np.where(free_N & (nearest_N > 1e-6 * square_N), weight_N * nearest_N, 0.0)
    return picks


def _draw(mass_N: np.ndarray, fallback_N: np.ndarray, rng: np.random.Generator) -> int:
    cumulative_N = np.cumsum(mass_N)
    if cumulative_N[-1] <= 0.0:
        cumulative_N = np.cumsum(fallback_N)
    return int(np.searchsorted(cumulative_N, rng.random() * cumulative_N[-1], side="right").clip(0, len(mass_N) - 1))


def scalable_kmeans(
    x_ND: np.ndarray,
    k: int,
    rng: np.random.Generator,
    rounds: int = 5,
    oversampling: float = 0.5,
    precision: str = "exact",
) -> np.ndarray:
    """k-means|| (Bahmani et al. 2012, algorithm 2): few rounds that each draw about oversampling * k rows at once.

    The candidates, weighted by how many rows are nearest to each, are then reduced to k by k-means++. Tops up with
    further rows if the rounds found fewer than k.
    """
    seed = int(rng.integers(2**31))
    rounds = max(rounds, int(np.ceil(1.5 / oversampling)))
    take = max(1, int(np.ceil(oversampling * k)))
    candidates = [int(rng.integers(len(x_ND)))]
    owner_N = np.zeros(len(x_ND), np.int64)
    nearest_N = np.full(len(x_ND), np.inf, np.float32)
    new = np.array(candidates)
    rows_N = np.arange(len(x_ND))
    with one_torch_thread():
        for turn in range(rounds + 1):
            label_N, square_N = assign_block(x_ND, x_ND[new], precision=precision)
            closer_N = square_N < nearest_N
            owner_N[closer_N] = label_N[closer_N] + len(candidates) - len(new)
            nearest_N[closer_N] = square_N[closer_N]
            if turn == rounds:
                break
            # Exponential races: the `take` smallest of -ln(u) / d^2 are a draw without replacement by d^2.
            with np.errstate(divide="ignore"):
                race_N = -np.log(row_uniform(rows_N, seed, turn)) / nearest_N
            new = np.sort(np.argpartition(race_N, min(take, len(race_N) - 1))[:take])
            new = new[np.isfinite(race_N[new])]
            if not len(new):
                break
            candidates.extend(new.tolist())
    weight = np.bincount(owner_N, minlength=len(candidates)).astype(np.float64)
    index, first = np.unique(np.array(candidates), return_index=True)
    weight = weight[first]
    if len(index) < k:
        rest = np.setdiff1d(rows_N, index)
        index = np.concatenate([index, rng.choice(rest, k - len(index), replace=False)])
        return x_ND[index]
    return x_ND[index[kmeans_plus_plus(x_ND[index], weight + 1e-9, k, rng)]]
