"""A lake's vectors as blocks, read from Lance as they are needed: by threads here, or by Ray actors anywhere.

A block is a fixed range of the table in scan order, less the rows that are not wanted. So blocks depend on the table's version
and on which rows are wanted, never on who reads them: with the exact merges of `vfm_ops.curate.blocks`, any number of
workers gives the same bits.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake import Lake
from vfm_ops.allocator import give_back_memory, share_one_heap
from vfm_ops.curate.blocks import Block, BlockStep, one_torch_thread, take_rows
from vfm_ops.curate.kmeans import available_cores

BLOCK_ROWS = 8192
"""Rows read at once. Part of what a selection is a function of: sums are rounded block by block."""
CACHE_BYTES = 256 << 20
RAY_ROWS = 100_000
"""Fewer vectors than these are done before an actor has started."""


@dataclass(frozen=True)
class VectorSource:
    """One embedding column at one version of `frames`; cheap to send to a worker."""

    root: str
    version: int
    column: str
    dim: int

    def read(self, offset: int, count: int) -> np.ndarray:
        """Rows [offset, offset + count) in scan order: float16 or float32 (count, D); a null row holds NaN."""
        scanner = Lake(self.root).table("frames", self.version).scanner
        found = scanner(columns=[self.column], offset=offset, limit=count, scan_in_order=True).to_table()
        return np.concatenate([list_values(chunk, self.dim) for chunk in found[self.column].chunks])


def list_values(array: Any, dim: int) -> np.ndarray:
    """A FixedSizeList array as numpy (rows, dim); null rows hold NaN."""
    flat = array.values.slice(array.offset * dim, len(array) * dim).to_numpy(zero_copy_only=False)
    x_ND = flat.reshape(len(array), dim)
    if array.null_count:
        x_ND = np.where(array.is_null().to_numpy(zero_copy_only=False)[:, None], np.nan, x_ND).astype(flat.dtype)
    return x_ND


@dataclass(frozen=True)
class Chunk:
    """A block to be read: table rows [offset, offset + count), of which `wanted` become rows start, start + 1, ..."""

    offset: int
    count: int
    start: int
    wanted: np.ndarray | None  # int32 positions in the range; None for all of it

    def load(self, source: VectorSource) -> Block:
        """Reads the block."""
        x_ND = source.read(self.offset, self.count)
        return Block(self.start, x_ND if self.wanted is None else x_ND[self.wanted])


def cut_chunks(positions: np.ndarray, block_rows: int = BLOCK_ROWS) -> list[Chunk]:
    """Chunks that cover sorted scan positions, at fixed places of the table; empty ranges are left out."""
    chunks = []
    numbers = positions // block_rows
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(positions)), strict=True):
        inside = positions[start:end]
        offset, count = int(inside[0]), int(inside[-1] - inside[0] + 1)
        wanted = None if count == len(inside) else (inside - offset).astype(np.int32)
        chunks.append(Chunk(offset, count, int(start), wanted))
    return chunks


class Vectors:
    """Vectors of chosen rows; `map_blocks` runs a step over them. Rows are numbered by scan position."""

    def __init__(
        self, source: VectorSource, positions: np.ndarray, workers: int = 0, actors: Actors | None = None
    ) -> None:
        """positions: sorted, int64 (N,). workers: threads, 0 for one a core. actors: who does the work instead of threads."""
        self.source, self.positions, self.workers, self.actors = source, positions, workers, actors
        self.chunks = cut_chunks(positions)
        self.cached = len(positions) * source.dim * 2 <= CACHE_BYTES
        self._blocks: dict[int, Block] = {}
        self._token = uuid.uuid4().hex

    def __len__(self) -> int:
        return len(self.positions)

    def only(self, positions: np.ndarray) -> Vectors:
        """The same column at other sorted scan positions, renumbered."""
        return Vectors(self.source, positions, self.workers, self.actors)

    def map_blocks(self, step: BlockStep, broadcast: Any) -> Iterable[Any]:
        """As `vfm_ops.curate.blocks.MapBlocks`."""
        if self.actors is None:
            return self._on_threads(step, broadcast)
        return self.actors.run(self._token, self.source, self.chunks, self.cached, step, broadcast)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of sorted distinct rows: (M, D)."""
        return take_rows(self.map_blocks, rows) if len(rows) else np.zeros((0, self.source.dim), np.float32)

    def all(self) -> np.ndarray:
        """Every vector, (N, D), in memory."""
        return self.take(np.arange(len(self)))

    def _on_threads(self, step: BlockStep, broadcast: Any) -> Iterator[Any]:
        workers = self.workers or available_cores()
        with one_torch_thread(), ThreadPoolExecutor(workers, initializer=limit_thread) as pool:
            running: list[Any] = []
            for number in range(len(self.chunks)):
                running.append(pool.submit(self._one, number, step, broadcast))
                if len(running) > workers:
                    yield running.pop(0).result()
            while running:
                yield running.pop(0).result()
        if not self.cached:
            give_back_memory()

    def _one(self, number: int, step: BlockStep, broadcast: Any) -> Any:
        block = self._blocks.get(number) or self.chunks[number].load(self.source)
        if self.cached:
            self._blocks[number] = block
        return step.map(block, broadcast)


class Actors:
    """A pool of Ray actors that read chunks and run steps; used as a context manager. One that dies starts anew."""

    def __init__(self, workers: int = 0) -> None:
        """workers: actors, 0 for one a CPU of the cluster."""
        self.workers = workers
        self._handles: list[Any] = []

    def __enter__(self) -> Actors:
        import ray

        from pipelines.cluster import connect

        connect()
        count = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": -1}
        self._handles = [ray.remote(**options)(BlockWorker).remote() for _ in range(count)]
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        for handle in self._handles:
            ray.kill(handle)
        self._handles = []

    def run(
        self, token: str, source: VectorSource, chunks: list[Chunk], cached: bool, step: BlockStep, broadcast: Any
    ) -> Iterator[Any]:
        """Partials of a step, one an actor, as they come. The broadcast lies in Ray's object store once."""
        import ray

        shared = ray.put(broadcast)
        count = min(len(self._handles), len(chunks))
        # Neighbouring chunks go to one actor: they lie in one fragment.
        parts = [chunks[len(chunks) * i // count : len(chunks) * (i + 1) // count] for i in range(count)]
        running = [h.run.remote(token, source, p, cached, step, shared) for h, p in zip(self._handles, parts)]
        while running:
            done, running = ray.wait(running)
            yield from ray.get(done)


class BlockWorker:
    """Actor: some chunks of the vectors, read anew on each pass unless they fit in memory."""

    def __init__(self) -> None:
        self.token = ""
        self.blocks: dict[int, Block] = {}
        share_one_heap()
        limit_thread()

    def run(
        self, token: str, source: VectorSource, chunks: list[Chunk], cached: bool, step: BlockStep, broadcast: Any
    ) -> Any:
        """The step over these chunks, merged. token: names the rows, so that blocks are kept from pass to pass."""
        if token != self.token:
            self.token, self.blocks = token, {}
        merged = reduce(step.merge, self._parts(source, chunks, cached, step, broadcast))
        if not cached:
            give_back_memory()
        return merged

    def _parts(
        self, source: VectorSource, chunks: list[Chunk], cached: bool, step: BlockStep, broadcast: Any
    ) -> Iterator[Any]:
        for chunk in chunks:
            block = self.blocks.get(chunk.start) or chunk.load(source)
            if cached:
                self.blocks[chunk.start] = block
            yield step.map(block, broadcast)


def limit_thread() -> None:
    """One torch thread for this thread: the workers are the parallelism."""
    import torch

    torch.set_num_threads(1)


def choose_backend(wanted: str, rows: int) -> str:
    """'ray' where it is wanted, or where a cluster is joined and the vectors are many; else 'local'."""
    import os
    import sys

    if wanted != "auto":
        return wanted
    ray = sys.modules.get("ray")
    joined = bool(os.environ.get("RAY_ADDRESS")) or bool(ray is not None and ray.is_initialized())
    return "ray" if joined and rows >= RAY_ROWS else "local"


def vector_dim(field: pa.Field) -> int:
    """Dimension of an embedding column."""
    return int(field.type.list_size)
