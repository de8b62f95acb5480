"""Embeddings in the plane: t-SNE (van der Maaten & Hinton 2008) of a sample, started from its principal components.

Exact, in blocks of matrix products: some thousand points take seconds on one core, and the map is kept until the lake changes.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pipelines.lake import Lake
from pipelines.search import Column

MOST_EXACT = 3000
STEPS = 250
PERPLEXITY = 30.0


class MapCache:
    """The map of each column, of the newest version of the lake that was asked for."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._made: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def get(self, column: Column, points: int) -> dict[str, Any]:
        """frame_ids, asset_ids, media types and x, y of at most `points` frames, spread evenly over the table."""
        with self._lock:
            dataset = self._lake.dataset("frames")
            version = 0 if dataset is None else dataset.version
            held = self._made.get((column.name, points))
            if held is not None and held[0] == version:
                return held[1]
            made = self._make(column, points)
            self._made[column.name, points] = version, made
            return made

    def _make(self, column: Column, points: int) -> dict[str, Any]:
        ids, vectors = sample_vectors(self._lake, column.name, points)
        xy = project(vectors)
        return {
            "model": column.spec,
            "frame_ids": ids,
            "x": [round(float(v), 4) for v in xy[:, 0]],
            "y": [round(float(v), 4) for v in xy[:, 1]],
        }


def sample_vectors(lake: Lake, column: str, most: int) -> tuple[list[str], np.ndarray]:
    """Frame ids and vectors, float32 (n, D), of every k-th frame that has one; n <= most. Streams: never holds the table."""
    total = lake.count("frames", f"{column} IS NOT NULL")
    every = max(1, -(-total // most))
    ids: list[str] = []
    parts: list[np.ndarray] = []
    seen = 0
    for batch in lake.scan("frames", ["frame_id", column], filter=f"{column} IS NOT NULL", batch_size=8192):
        first = (-seen) % every
        seen += batch.num_rows
        taken = batch.take(np.arange(first, batch.num_rows, every))
        ids += taken.column(0).to_pylist()
        array = taken.column(1)
        if len(array):
            flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            parts.append(flat.reshape(len(array), -1))
    return ids, np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def project(x_ND: np.ndarray) -> np.ndarray:
    """float64 (N, 2), both axes from -1 to 1: t-SNE of up to MOST_EXACT points; others lie among their nearest placed ones."""
    n = len(x_ND)
    if n < 5:
        return np.stack([np.linspace(-1, 1, n) if n > 1 else np.zeros(n), np.zeros(n)], 1)
    placed = np.linspace(0, n - 1, min(n, MOST_EXACT)).astype(int)
    y = tsne(x_ND[placed])
    if len(placed) < n:
        everyone = np.empty((n, 2))
        for start in range(0, n, 2048):
            similar = x_ND[start : start + 2048] @ x_ND[placed].T
            nearest = np.argpartition(-similar, 3, axis=1)[:, :3]
            weights = np.exp(20 * np.take_along_axis(similar, nearest, 1))[..., None]
            everyone[start : start + 2048] = (y[nearest] * weights).sum(1) / weights.sum(1)
        everyone[placed] = y
        y = everyone
    y = y - (y.max(0) + y.min(0)) / 2
    return y / np.maximum(np.abs(y).max(0), 1e-12)


def tsne(x_ND: np.ndarray, steps: int = STEPS, perplexity: float = PERPLEXITY) -> np.ndarray:
    """float64 (N, 2). Exact gradient, early exaggeration 12 for the first quarter, momentum 0.5 then 0.8."""
    n = len(x_ND)
    p = _affinities(x_ND, min(perplexity, (n - 1) / 3))
    centred = x_ND - x_ND.mean(0)
    _, _, vt = np.linalg.svd(centred[np.linspace(0, n - 1, min(n, 1000)).astype(int)], full_matrices=False)
    axes = vt[:2] if len(vt) > 1 else np.vstack([vt, vt])
    y = (centred @ axes.T).astype(np.float32)
    y *= np.float32(1e-4 / max(float(y[:, 0].std()), 1e-12))
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    rate = np.float32(max(n / 12 / 4, 50))
    for step in range(steps):
        early = step < steps // 4
        gradient = _gradient(p, y, 12.0 if early else 1.0)
        same = np.sign(gradient) == np.sign(velocity)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        velocity = np.float32(0.5 if early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        y -= y.mean(0)
    return y.astype(np.float64)


def _gradient(p_NN: np.ndarray, y: np.ndarray, exaggeration: float) -> np.ndarray:
    """4 sum_j (p_ij - q_ij) (1 + |y_i - y_j|^2)^-1 (y_i - y_j): eq. 5 of the paper."""
    squared = (y * y).sum(1)
    w = 1.0 / (1.0 + np.maximum(squared[:, None] + squared[None] - 2 * (y @ y.T), 0))
    np.fill_diagonal(w, 0)
    total = max(float(w.sum()), 1e-12)
    pull = (np.float32(exaggeration) * p_NN - w / np.float32(total)) * w
    return 4 * (pull.sum(1)[:, None] * y - pull @ y)


def _affinities(x_ND: np.ndarray, perplexity: float) -> np.ndarray:
    """Symmetric p_ij, float32, sums to 1; each row's bandwidth found by bisection on its entropy, all rows at once."""
    n = len(x_ND)
    squared = (x_ND * x_ND).sum(1)
    d = np.maximum(squared[:, None] + squared[None] - 2 * (x_ND @ x_ND.T), 0).astype(np.float32)
    np.fill_diagonal(d, np.inf)
    d -= d.min(1, keepdims=True)
    low, high, beta = np.zeros(n, np.float32), np.full(n, np.inf, np.float32), np.ones(n, np.float32)
    finite = np.where(np.isinf(d), 0, d)
    for _ in range(40):
        p = np.exp(-d * beta[:, None])
        total = p.sum(1)
        entropy = np.log(total) + beta * (finite * p).sum(1) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + high) / 2)
    p = np.exp(-d * beta[:, None])
    p /= p.sum(1, keepdims=True)
    return ((p + p.T) / (2 * n)).astype(np.float32)
