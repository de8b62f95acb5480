"""Near-duplicate search: all pairs of vectors whose cosine reaches a threshold, in time that grows almost linearly.

The vectors are cut into cells by k-means. Let y be within chord r of x, with y in cell b and x in cell a. Then x lies
at most r beyond the plane that separates the two centroids:

    (x.(c_a - c_b) - (|c_a|^2 - |c_b|^2) / 2) / |c_a - c_b|  <=  r,      r = sqrt(2 - 2 threshold)

and y likewise. So only the rows near that plane (the halo) are compared across cells; with reach = 1 and all cells as
neighbours nothing is lost. The plane's normal has little to do with the direction in which near-duplicates differ,
so that in D dimensions a reach well below 1 loses next to nothing and compares far less. Candidates are found with
bfloat16 products and verified in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vfm_ops.curate.blocks import check_vectors, local_map, one_torch_thread, sample_rows
from vfm_ops.curate.kernels import normalised, resolve_device, resolve_precision, shifted_centroids, shifted_rows
from vfm_ops.curate.kmeans import KMeansOptions, assign, available_cores, kmeans
from vfm_ops.errors import UsageError

_BF16_MARGIN = 0.006
"""How far a bfloat16 cosine of unit vectors may be off: half a step of the result, and the inputs' rounding."""


class Pairs(NamedTuple):
    """Pairs of rows i < j and their cosine: int64 (P,), int64 (P,), float32 (P,)."""

    i: np.ndarray
    j: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True)
class NeighbourOptions:
    """How near-duplicates are searched.

    reach: share of the chord that a row may lie from a cell's border and still be compared across it; 1 is complete.
    neighbour_cells: cells compared with each cell, the nearest ones; 0 means all. cell_rows: mean rows a cell.
    """

    reach: float = 0.5
    neighbour_cells: int = 96
    cell_rows: int = 256
    seed: int = 0
    workers: int = 0
    precision: str = "auto"
    device: str = "auto"

    @classmethod
    def complete(cls, **changes: Any) -> NeighbourOptions:
        """Options that lose no pair (but for float32's rounding at the threshold itself)."""
        return cls(**{"reach": 1.0, "neighbour_cells": 0, **changes})


def near_duplicate_pairs(
    x_ND: np.ndarray, threshold: float, options: NeighbourOptions | None = None
) -> Iterator[Pairs]:
    """Streams the pairs of rows with cosine >= threshold, each pair once, in batches; same batches on every run.

    x_ND: float16 or float32, any length of rows. Raises UsageError for a threshold outside (0, 1], NaN or zero rows.
    """
    options = options or NeighbourOptions()
    if not 0.0 < threshold <= 1.0:
        raise UsageError(f"the cosine threshold must be above 0 and at most 1, not {threshold}")
    check_vectors(x_ND, "cosine")
    return _search(normalised(x_ND), threshold, options)


def _search(x_ND: np.ndarray, threshold: float, options: NeighbourOptions) -> Iterator[Pairs]:
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    centroids_KD, label_N = _cells(x_ND, options)
    order = np.argsort(label_N, kind="stable")
    start_K = np.searchsorted(label_N[order], np.arange(len(centroids_KD) + 1))
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    sorted_ND = torch.from_numpy(x_ND).to(device=device, dtype=kind)[torch.from_numpy(order).to(device)]
    with one_torch_thread():
        halo = _halo(x_ND, order, start_K, centroids_KD, threshold, options, precision, device)
    for cell in range(len(centroids_KD)):
        core = np.arange(start_K[cell], start_K[cell + 1])
        with one_torch_thread():
            found = list(_cell_pairs(sorted_ND, core, halo[cell], threshold - _margin(precision)))
        for a, b in found:
            i, j = np.minimum(order[a], order[b]), np.maximum(order[a], order[b])
            pairs = _verified(x_ND, i, j, threshold)
            if len(pairs.i):
                yield pairs


def _margin(precision: str) -> float:
    return _BF16_MARGIN if precision == "bf16" else 1e-5


def _cells(x_ND: np.ndarray, options: NeighbourOptions) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and labels of a rough k-means: a few iterations on 16 rows a cell."""
    cells = max(1, len(x_ND) // options.cell_rows)
    sample_ND = x_ND[sample_rows(len(x_ND), 16 * cells, options.seed)]
    settings = KMeansOptions(
        init="random",
        iterations=4,
        seed=options.seed,
        workers=options.workers,
        precision=options.precision,
        device=options.device,
    )
    centroids_KD = kmeans(sample_ND, cells, settings).centroids_KD
    data = local_map(x_ND, options.workers or available_cores())
    label_N, _ = assign(data, centroids_KD, settings, precision=options.precision)
    return centroids_KD, label_N


class Halo(NamedTuple):
    """Sorted positions around one cell: rows of later cells near its border; its own rows near a later cell's border."""

    outside: np.ndarray
    inside: np.ndarray


def _halo(
    x_ND: np.ndarray,
    order: np.ndarray,
    start_K: np.ndarray,
    centroids_KD: np.ndarray,
    threshold: float,
    options: NeighbourOptions,
    precision: str,
    device: str,
) -> list[Halo]:
    """For every cell, who must be compared across its borders."""
    chord = options.reach * float(np.sqrt(max(0.0, 2.0 - 2.0 * threshold))) + (1e-6 if precision == "exact" else 4e-3)
    shift_D = centroids_KD.mean(axis=0)
    centroids = shifted_centroids(centroids_KD, shift_D, precision, device)
    near_KM, gap_KM = _neighbour_cells(centroids_KD, options.neighbour_cells)
    outside: list[list[np.ndarray]] = [[] for _ in centroids_KD]
    inside: list[np.ndarray] = []
    for cell in range(len(centroids_KD)):
        low, high = int(start_K[cell]), int(start_K[cell + 1])
        near_M = near_KM[cell]
        rows = shifted_rows(x_ND[order[low:high]], shift_D, precision, device)
        score_NM = (rows @ centroids[near_M].T).float().cpu().numpy()
        own_N1 = (rows @ centroids[cell]).float().cpu().numpy()[:, None]
        crosses_NM = own_N1 - score_NM <= chord * gap_KM[cell]
        inside.append(low + np.flatnonzero(crosses_NM[:, near_M > cell].any(axis=1)))
        for column in np.flatnonzero((near_M < cell) & crosses_NM.any(axis=0)):
            outside[near_M[column]].append(low + np.flatnonzero(crosses_NM[:, column]))
    none = np.zeros(0, np.int64)
    return [Halo(np.concatenate(rows) if rows else none, mine) for rows, mine in zip(outside, inside, strict=True)]


def _neighbour_cells(centroids_KD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other centroids of each: indices and distances, (K, M); all others when count is 0."""
    k = len(centroids_KD)
    count = min(count or k - 1, k - 1)
    square_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD)
    near_KM = np.empty((k, count), np.int64)
    gap_KM = np.empty((k, count), np.float32)
    for low in range(0, k, 1024):
        part = slice(low, low + 1024)
        square_PK = square_K[part, None] - 2.0 * centroids_KD[part] @ centroids_KD.T + square_K
        square_PK[np.arange(len(square_PK)), np.arange(low, low + len(square_PK))] = np.inf
        chosen = np.argpartition(square_PK, count - 1, axis=1)[:, :count] if count else near_KM[part]
        near_KM[part] = np.sort(chosen, axis=1)
        gap_KM[part] = np.sqrt(np.maximum(np.take_along_axis(square_PK, near_KM[part], axis=1), 0.0))
    return near_KM, gap_KM


def _cell_pairs(x_ND: Any, core: np.ndarray, halo: Halo, floor: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidate pairs (sorted positions) within a cell and between its border rows and those of later cells."""
    if len(core) > 1:
        rows = x_ND[int(core[0]) : int(core[-1]) + 1]
        for low in range(0, len(core), 1024):
            a, b = _above(rows[low : low + 1024] @ rows[low:].T, floor)
            ahead = b > a
            yield core[a[ahead] + low], core[b[ahead] + low]
    if len(halo.inside) and len(halo.outside):
        mine, others = x_ND[halo.inside], x_ND[halo.outside]
        for low in range(0, len(halo.outside), 2048):
            a, b = _above(mine @ others[low : low + 2048].T, floor)
            yield halo.inside[a], halo.outside[b + low]


def _above(score_AB: Any, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices where the score reaches a positive floor; on the CPU bfloat16 is compared by its bits, as int16."""
    import torch

    if score_AB.device.type != "cpu":
        hits = (score_AB >= floor).nonzero().cpu().numpy()
        return hits[:, 0], hits[:, 1]
    if score_AB.dtype == torch.bfloat16:
        bits = int(torch.tensor(floor, dtype=torch.bfloat16).view(torch.int16))
        hit_AB = score_AB.view(torch.int16).numpy() >= bits
    else:
        hit_AB = score_AB.numpy() >= floor
    flat = np.flatnonzero(hit_AB)
    return flat // hit_AB.shape[1], flat % hit_AB.shape[1]


def _verified(x_ND: np.ndarray, i: np.ndarray, j: np.ndarray, threshold: float) -> Pairs:
    """The candidates whose float32 cosine reaches the threshold."""
    cosine = np.empty(len(i), np.float32)
    for low in range(0, len(i), 8192):
        part = slice(low, low + 8192)
        cosine[part] = np.einsum("pd,pd->p", x_ND[i[part]], x_ND[j[part]])
    keep = cosine >= np.float32(threshold - 1e-6)
    return Pairs(i[keep], j[keep], cosine[keep])
