"""k-means over blocks: assignment and partial sums per block, an exact merge, an update, and the driver of these.

    kmeans ── survey ▶ sample, init ▶ [ broadcast centroids ▶ partial_sums per block ▶ merge ▶ update ] ▶ labels

Sums are float32 inside a block, then rounded to a grid on which float64 addition is exact. Hence the result is
the same, bit for bit, for any order of blocks and any number of workers.
Shapes: N rows, D dimensions, K clusters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np

from vfm_ops.curate.blocks import (
    Block,
    BlockStep,
    MapBlocks,
    Source,
    VectorStats,
    iterate_blocks,
    local_map,
    run_step,
    sample_rows,
    survey,
    take_rows,
)
from vfm_ops.curate.kernels import (
    distances_to,
    nearest,
    normalised,
    resolve_device,
    resolve_precision,
    rows_of,
    shifted_centroids,
    shifted_rows,
)
from vfm_ops.curate.kmeans_init import initial_centroids
from vfm_ops.errors import UsageError

METRICS = ("l2", "cosine")
ALGORITHMS = ("lloyd", "minibatch")
_SPARE = 64
"""Rows far from their centroid that a block offers as new places for empty clusters."""


@dataclass(frozen=True)
class Broadcast:
    """What every block needs for one step: centroids (float32, (K, D)) and how to compare with them."""

    centroids_KD: np.ndarray
    shift_D: np.ndarray
    grid: float
    metric: str = "l2"
    precision: str = "exact"
    device: str = "cpu"
    spare: bool = True


@dataclass(frozen=True)
class Partials:
    """Sums over some rows: per cluster the vector sum (float64, on the grid) and the count; the rows far out.

    far: (row, squared distance, vector), the farthest first; where empty clusters are re-seeded.
    """

    sum_KD: np.ndarray
    count_K: np.ndarray
    far: list[tuple[int, float, np.ndarray]] = field(default_factory=list)


def _prepared(block: Block, broadcast: Broadcast) -> tuple[np.ndarray, object]:
    """The block's float32 rows and their shifted tensor; the tensor is kept with the block for the next pass."""
    x_ND = np.ascontiguousarray(rows_of(block, broadcast.metric))
    key = (broadcast.precision, broadcast.device, broadcast.metric, broadcast.shift_D.tobytes())
    if block.cache.get("key") != key:
        block.cache["rows"] = shifted_rows(x_ND, broadcast.shift_D, broadcast.precision, broadcast.device)
        block.cache["key"] = key
    return x_ND, block.cache["rows"]


def _labels(block: Block, broadcast: Broadcast) -> tuple[np.ndarray, np.ndarray]:
    x_ND, rows = _prepared(block, broadcast)
    centroids = shifted_centroids(broadcast.centroids_KD, broadcast.shift_D, broadcast.precision, broadcast.device)
    return x_ND, nearest(rows, centroids)


def partial_sums(block: Block, broadcast: Broadcast) -> Partials:
    """Assigns the block's rows to their nearest centroid and sums them per cluster."""
    import torch

    x_ND, label_N = _labels(block, broadcast)
    k = len(broadcast.centroids_KD)
    sum_KD = torch.zeros(k, x_ND.shape[1]).index_add_(0, torch.from_numpy(label_N), torch.from_numpy(x_ND)).double()
    exact_KD = np.rint(sum_KD.numpy() / broadcast.grid) * broadcast.grid
    far = _farthest(block, x_ND, label_N, broadcast) if broadcast.spare else []
    return Partials(exact_KD, np.bincount(label_N, minlength=k), far)


def _farthest(block: Block, x_ND: np.ndarray, label_N: np.ndarray, broadcast: Broadcast) -> list:
    square_N = distances_to(x_ND, broadcast.centroids_KD, label_N)
    top = np.argsort(-square_N, kind="stable")[:_SPARE]
    return [(block.start + int(i), float(square_N[i]), x_ND[i].copy()) for i in top if square_N[i] > 0]


def merge_partials(a: Partials, b: Partials) -> Partials:
    """Sum of two partials: exact, so that order and grouping change nothing."""
    far = sorted(a.far + b.far, key=lambda item: (-item[1], item[0]))[:_SPARE]
    return Partials(a.sum_KD + b.sum_KD, a.count_K + b.count_K, far)


SUMS = BlockStep(partial_sums, merge_partials)


def update_centroids(partials: Partials, centroids_KD: np.ndarray, metric: str = "l2") -> np.ndarray:
    """New centroids, float32: means (normalised under cosine); an empty cluster moves to the farthest row still free.

    Where there is no such row (fewer distinct rows than clusters) the empty cluster stays where it was.
    """
    count_K = partials.count_K
    new_KD = (partials.sum_KD / np.maximum(count_K, 1)[:, None]).astype(np.float32)
    if metric == "cosine":
        new_KD = normalised(new_KD)
    empty = np.flatnonzero(count_K == 0)
    new_KD[empty] = centroids_KD[empty]
    for cluster, (_, _, vector_D) in zip(empty, partials.far, strict=False):
        new_KD[cluster] = vector_D
    return new_KD


def _assign_step(block: Block, broadcast: Broadcast) -> list:
    x_ND, label_N = _labels(block, broadcast)
    return [(block.start, label_N.astype(np.int32), distances_to(x_ND, broadcast.centroids_KD, label_N))]


ASSIGN = BlockStep(_assign_step, lambda a, b: a + b)


@dataclass(frozen=True)
class KMeansResult:
    """centroids float32 (K, D); labels int32 (N,); squared distances float32 (N,); counts (K,); inertia, their sum.

    history: mean squared distance to the updated centroids after each iteration.
    """

    centroids_KD: np.ndarray
    labels_N: np.ndarray
    sqdist_N: np.ndarray
    counts_K: np.ndarray
    inertia: float
    history: list[float]


@dataclass(frozen=True)
class KMeansOptions:
    """How k-means runs.

    metric: 'l2' or 'cosine' (spherical k-means). init: 'auto', 'k-means++', 'k-means||', 'random'; made on a sample of
    at least init_rows_per_cluster rows a cluster. algorithm: 'lloyd', or 'minibatch' (Sculley 2010; one pass over the
    blocks an iteration). tol: stop when the mean squared distance improves by less than this share. workers: threads
    (0: one per core; the result is the same for any number). precision: 'auto', 'exact' or 'bf16' for the iterations;
    the final labels are always exact. device: 'auto', 'cpu' or 'cuda'.
    """

    metric: str = "l2"
    init: str = "auto"
    algorithm: str = "lloyd"
    iterations: int = 20
    tol: float = 1e-4
    seed: int = 0
    workers: int = 0
    precision: str = "auto"
    device: str = "auto"
    init_rows_per_cluster: int = 32
    batch_rows: int = 4096

    def __post_init__(self) -> None:
        for name, known in (("metric", METRICS), ("algorithm", ALGORITHMS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.iterations < 0:
            raise UsageError(f"iterations must be 0 or more, not {self.iterations}")


def kmeans(
    source: Source | None,
    k: int,
    options: KMeansOptions | None = None,
    *,
    centroids_KD: np.ndarray | None = None,
    map_blocks: MapBlocks | None = None,
) -> KMeansResult:
    """Clusters vectors into k groups.

    source: array (N, D), float16 or float32, or a callable that yields such arrays anew on each call; None when
    map_blocks brings the data (from actors over fragments, say). centroids_KD: where to start instead of options.init.
    Returns a KMeansResult. Raises UsageError for NaN rows, zero vectors (cosine), k out of range, other dimensions.
    """
    options = options or KMeansOptions()
    if map_blocks is None:
        if source is None:
            raise UsageError("k-means needs vectors: give an array, a callable that yields arrays, or map_blocks")
        map_blocks = local_map(source, options.workers or available_cores())
    stats = survey(map_blocks, options.metric)
    _check_k(k, stats, centroids_KD)
    start_KD = centroids_KD if centroids_KD is not None else _start(map_blocks, stats, k, options)
    broadcast = _broadcast(np.asarray(start_KD, np.float32), stats, options)
    if options.algorithm == "minibatch":
        if source is None:
            raise UsageError("minibatch k-means walks the blocks in order, so give it the source, not map_blocks")
        centroids_KD, history = _minibatch(source, broadcast, options)
    else:
        centroids_KD, history = _lloyd(map_blocks, broadcast, options)
    labels_N, sqdist_N = assign(map_blocks, centroids_KD, options)
    counts_K = np.bincount(labels_N, minlength=k)
    return KMeansResult(centroids_KD, labels_N, sqdist_N, counts_K, float(sqdist_N.sum(dtype=np.float64)), history)


def assign(
    map_blocks: MapBlocks, centroids_KD: np.ndarray, options: KMeansOptions | None = None, precision: str = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of every row, in row order: labels int32 (N,) and squared distances float32 (N,)."""
    options = options or KMeansOptions()
    centroids_KD = np.asarray(centroids_KD, np.float32)
    device = resolve_device(options.device)
    precision = resolve_precision(precision, device)
    shift_D = centroids_KD.mean(axis=0)
    broadcast = Broadcast(centroids_KD, shift_D, 1.0, options.metric, precision, device, spare=False)
    parts = sorted(run_step(map_blocks, ASSIGN, broadcast), key=lambda part: part[0])
    return np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_k(k: int, stats: VectorStats, centroids_KD: np.ndarray | None) -> None:
    if k < 1:
        raise UsageError(f"the number of clusters must be 1 or more, not {k}")
    if k > stats.rows:
        raise UsageError(f"{k} clusters were asked for, but there are only {stats.rows} items: ask for fewer clusters")
    if centroids_KD is not None and centroids_KD.shape != (k, stats.dim):
        raise UsageError(f"initial centroids have shape {centroids_KD.shape}, but {(k, stats.dim)} is needed")


def _start(map_blocks: MapBlocks, stats: VectorStats, k: int, options: KMeansOptions) -> np.ndarray:
    """Initial centroids, from a uniform sample of at most 2^18 rows (or 4 a cluster)."""
    wanted = max(4 * k, min(options.init_rows_per_cluster * k, 1 << 18), 4096)
    sample_ND = take_rows(map_blocks, sample_rows(stats.rows, wanted, options.seed))
    x_ND = np.ascontiguousarray(rows_of(Block(0, sample_ND), options.metric))
    return initial_centroids(x_ND, k, options.init, options.seed, resolve_precision(options.precision))


def _broadcast(centroids_KD: np.ndarray, stats: VectorStats, options: KMeansOptions) -> Broadcast:
    device = resolve_device(options.device)
    cosine = options.metric == "cosine"
    # A float64 sum of multiples of the grid is exact up to 2^53 grids: 2^29 rows of the largest value.
    grid = 2.0 ** (np.ceil(np.log2(1.0 if cosine else max(stats.scale, 1e-30))) - 24)
    shift_D = centroids_KD.mean(axis=0) if cosine else stats.shift_D
    return Broadcast(centroids_KD, shift_D, grid, options.metric, resolve_precision(options.precision, device), device)


def _mean_square(partials: Partials, shift_D: np.ndarray) -> float:
    """Between-cluster part of the mean squared norm: the inertia falls by exactly what this gains (Huygens)."""
    count_K1 = np.maximum(partials.count_K, 1)[:, None].astype(np.float64)
    gap_KD = partials.sum_KD - partials.count_K[:, None] * shift_D.astype(np.float64)
    return float((gap_KD**2 / count_K1).sum() / partials.count_K.sum())


def _lloyd(map_blocks: MapBlocks, broadcast: Broadcast, options: KMeansOptions) -> tuple[np.ndarray, list[float]]:
    """Lloyd's iterations until `tol` or the number asked for; returns centroids and the gain's history."""
    history: list[float] = []
    total = _total_square(map_blocks, broadcast)
    for _ in range(options.iterations):
        partials = run_step(map_blocks, SUMS, broadcast)
        centroids_KD = update_centroids(partials, broadcast.centroids_KD, options.metric)
        history.append(max(0.0, total - _mean_square(partials, broadcast.shift_D)))
        same = bool(np.array_equal(centroids_KD, broadcast.centroids_KD))
        empty = bool((partials.count_K == 0).any())
        broadcast = replace(broadcast, centroids_KD=centroids_KD, spare=empty)
        settled = len(history) > 1 and history[-2] - history[-1] < options.tol * history[-1]
        if same or (options.tol > 0 and settled and not empty):
            break
    return broadcast.centroids_KD, history


def _square_step(block: Block, broadcast: Broadcast) -> list[tuple[int, int, float]]:
    gap_ND = rows_of(block, broadcast.metric) - broadcast.shift_D
    return [(block.start, len(gap_ND), float(np.einsum("nd,nd->", gap_ND, gap_ND, dtype=np.float64)))]


SQUARES = BlockStep(_square_step, lambda a, b: a + b)


def _total_square(map_blocks: MapBlocks, broadcast: Broadcast) -> float:
    parts = sorted(run_step(map_blocks, SQUARES, broadcast))
    return sum(part[2] for part in parts) / sum(part[1] for part in parts)


def _minibatch(source: Source, broadcast: Broadcast, options: KMeansOptions) -> tuple[np.ndarray, list[float]]:
    """Mini-batch k-means (Sculley 2010): each centroid moves to the running mean of all rows it was ever given."""
    seen_K = np.zeros(len(broadcast.centroids_KD), np.int64)
    history: list[float] = []
    if isinstance(source, np.ndarray):
        # A stream comes in its own order; rows at hand are better mixed.
        source = source[np.random.default_rng(options.seed).permutation(len(source))]
    for _ in range(options.iterations):
        loss, rows = 0.0, 0
        for block in iterate_blocks(source, options.batch_rows):
            partials = partial_sums(block, broadcast)
            loss += float(_assign_step(block, broadcast)[0][2].sum(dtype=np.float64))
            rows += len(block.x_ND)
            broadcast = replace(broadcast, centroids_KD=_drift(partials, broadcast, seen_K))
        history.append(loss / rows)
        if len(history) > 1 and abs(history[-2] - history[-1]) < options.tol * history[-1]:
            break
    return broadcast.centroids_KD, history


def _drift(partials: Partials, broadcast: Broadcast, seen_K: np.ndarray) -> np.ndarray:
    """Centroids after one batch; clusters that never got a row are re-seeded. Adds the batch to seen_K."""
    seen_K += partials.count_K
    old_KD = broadcast.centroids_KD.astype(np.float64)
    step_KD = (partials.sum_KD - partials.count_K[:, None] * old_KD) / np.maximum(seen_K, 1)[:, None]
    new_KD = (old_KD + step_KD).astype(np.float32)
    if broadcast.metric == "cosine":
        new_KD = normalised(new_KD)
    for cluster, (_, _, vector_D) in zip(np.flatnonzero(seen_K == 0), partials.far, strict=False):
        new_KD[cluster] = vector_D
    return new_KD
