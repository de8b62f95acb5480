"""Vectors as a stream of blocks: how every clustering step meets the data, on one machine or on a cluster.

A step is a pair (map, merge). `map(block, broadcast)` turns one block of rows into a partial result, `merge(a, b)` joins
two. A `MapBlocks` runs a step over all blocks and yields partials in any order, pre-merged or not: every merge here is
exact and commutative, so the result does not depend on who computed what. Threads run it here; actors may elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from vfm_ops.errors import UsageError

BLOCK_ROWS = 16384


@dataclass
class Block:
    """Rows [start, start + len(x_ND)) of the data. x_ND: float16 or float32. `cache` lives as long as the block does."""

    start: int
    x_ND: np.ndarray
    cache: dict[str, Any] = field(default_factory=dict)


class BlockStep(NamedTuple):
    """map(block, broadcast) -> partial; merge(partial, partial) -> partial, commutative and exactly associative."""

    map: Callable[[Block, Any], Any]
    merge: Callable[[Any, Any], Any]


MapBlocks = Callable[[BlockStep, Any], Iterable[Any]]
Source = np.ndarray | Callable[[], Iterable[np.ndarray]]


def run_step(map_blocks: MapBlocks, step: BlockStep, broadcast: Any) -> Any:
    """Runs a step over every block and merges what comes back; None when there are no blocks."""
    return reduce(lambda a, b: b if a is None else step.merge(a, b), map_blocks(step, broadcast), None)


def iterate_blocks(source: Source, block_rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Blocks of at most block_rows rows, cut at fixed places so that results never depend on the number of workers."""
    start = 0
    for x_ND in [source] if isinstance(source, np.ndarray) else source():
        if x_ND.ndim != 2:
            raise UsageError(f"vectors must come as a 2-D array (rows, dimension), but the shape is {x_ND.shape}")
        for i in range(0, len(x_ND), block_rows):
            yield Block(start + i, x_ND[i : i + block_rows])
        start += len(x_ND)


def local_map(source: Source, workers: int = 1, block_rows: int = BLOCK_ROWS) -> MapBlocks:
    """A MapBlocks over data on this machine: `workers` threads, one BLAS thread each.

    An array's blocks are kept, and with them their caches; a callable is called anew for every pass and at most
    2 * workers of its blocks are alive at once.
    """
    kept = list(iterate_blocks(source, block_rows)) if isinstance(source, np.ndarray) else None

    def map_blocks(step: BlockStep, broadcast: Any) -> Iterator[Any]:
        blocks = kept if kept is not None else iterate_blocks(source, block_rows)
        with one_torch_thread():
            if workers <= 1:
                yield from (step.map(block, broadcast) for block in blocks)
                return
            with ThreadPoolExecutor(workers, initializer=_limit_thread) as pool:
                running: list = []
                for block in blocks:
                    running.append(pool.submit(step.map, block, broadcast))
                    if len(running) >= 2 * workers:
                        yield running.pop(0).result()
                yield from (future.result() for future in running)

    return map_blocks


def _limit_thread() -> None:
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch kernels run on one thread inside: the same bits whatever the number of cores, and no oversubscription."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class VectorStats:
    """What one pass over the data tells: rows, dimension, a shift near the mean (float32), the largest |value|."""

    rows: int
    dim: int
    shift_D: np.ndarray
    scale: float


def _survey(block: Block, broadcast: Any) -> list[dict]:
    x_ND = np.asarray(block.x_ND, dtype=np.float32)
    finite_N = np.isfinite(x_ND).all(axis=1)
    bad = np.flatnonzero(~finite_N)
    zero = np.flatnonzero(finite_N & ~x_ND.any(axis=1))
    clean_ND = x_ND if not len(bad) else x_ND[finite_N]
    first = [block.start + int(rows[0]) if len(rows) else -1 for rows in (bad, zero)]
    return [
        {
            "start": block.start,
            "rows": len(x_ND),
            "dim": x_ND.shape[1],
            "bad": (len(bad), first[0]),
            "zero": (len(zero), first[1]),
            "sum": clean_ND.sum(axis=0, dtype=np.float64),
            "max": float(np.abs(clean_ND).max(initial=0.0)),
        }
    ]


SURVEY = BlockStep(_survey, lambda a, b: a + b)


def survey(map_blocks: MapBlocks, metric: str = "l2") -> VectorStats:
    """Checks the vectors and measures their range, in one pass.

    metric: 'l2' or 'cosine'; under cosine a zero vector has no direction. Raises UsageError naming how many rows hold
    NaN or infinity (or, for cosine, only zeros) and which is the first; or that dimensions differ; or that there is
    nothing at all.
    """
    found = sorted(run_step(map_blocks, SURVEY, None) or [], key=lambda part: part["start"])
    rows = sum(part["rows"] for part in found)
    if rows == 0:
        raise UsageError("there are no vectors to work on: embed the data first, then curate")
    dims = sorted({part["dim"] for part in found})
    if len(dims) > 1:
        raise UsageError(f"vectors of different dimensions ({dims[0]} and {dims[1]}) are mixed: use one model's column")
    _refuse(found, "bad", rows, "NaN or infinite values", "embed these items again, or leave them out")
    if metric == "cosine":
        _refuse(found, "zero", rows, "only zeros, which have no direction", "embed them again, or use metric l2")
    total_D = np.sum([part["sum"] for part in found], axis=0)
    scale = max(part["max"] for part in found)
    return VectorStats(rows, dims[0], (total_D / rows).astype(np.float32), scale)


def _refuse(found: list[dict], key: str, rows: int, what: str, remedy: str) -> None:
    count = sum(part[key][0] for part in found)
    if count:
        first = min(part[key][1] for part in found if part[key][0])
        raise UsageError(f"{count} of {rows} vectors hold {what} (the first is row {first}): {remedy}")


def check_vectors(x_ND: np.ndarray, metric: str = "l2") -> VectorStats:
    """`survey` of an array: raises UsageError for NaN rows, zero vectors (cosine), an empty or not 2-D array."""
    return survey(local_map(x_ND), metric)


def row_uniform(rows_N: np.ndarray, seed: int, salt: int = 0) -> np.ndarray:
    """A uniform number in (0, 1) per row index, a hash of (row, seed, salt): independent of blocks, order and workers.

    SplitMix64 (Steele et al. 2014, fig. 15). rows_N: integers. Returns float64.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(rows_N).astype(np.uint64) + np.uint64(
            (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) % 2**64
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z + np.uint64(0x9E3779B97F4A7C15)) if shift == 30 else z
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _take(block: Block, rows_M: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    low, high = np.searchsorted(rows_M, [block.start, block.start + len(block.x_ND)])
    return [(rows_M[low:high], block.x_ND[rows_M[low:high] - block.start].copy())] if high > low else []


TAKE = BlockStep(_take, lambda a, b: a + b)


def take_rows(map_blocks: MapBlocks, rows_M: np.ndarray) -> np.ndarray:
    """The vectors of the given sorted distinct rows, in that order: (M, D)."""
    parts = sorted(run_step(map_blocks, TAKE, rows_M) or [], key=lambda part: part[0][0])
    return np.concatenate([x for _, x in parts])


def sample_rows(rows: int, count: int, seed: int, salt: int = 0) -> np.ndarray:
    """`count` distinct rows out of `rows`, uniformly, sorted: those with the smallest `row_uniform`."""
    if count >= rows:
        return np.arange(rows)
    order = np.argpartition(row_uniform(np.arange(rows), seed, salt), count)[:count]
    return np.sort(order)
