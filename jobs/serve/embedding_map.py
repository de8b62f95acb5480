"""The page's map of embeddings: laid out by `vfm_ops.curate.projection`, and kept until the lake changes.

What is shown is a sample; a lasso catches every frame that has a vector, placed among its nearest ones of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.serve.problems import Problem
from pipelines.curation.vectors import list_values
from pipelines.lake import Lake
from pipelines.search.columns import Column
from vfm_ops.curate.projection import place_among, project

MOST_ANCHORS = 3000
KEPT_MAPS = 4
STALE = "The lake was changed or compacted since this map was made: open the map again."


@dataclass
class Layout:
    """One map of one version of a lake. ids: of the sample. x_MD: its vectors, y_M2: their places, from -1 to 1. total: frames
    with a vector."""

    dataset: Any
    column: str
    ids: list[str]
    x_MD: np.ndarray
    y_M2: np.ndarray
    total: int

    def inside(self, polygon: list[tuple[float, float]]) -> list[str]:
        """Ids of all frames inside, by the even-odd rule as the page draws it; those of the sample are where it shows them."""
        ids, y_N2 = self._everyone
        return ids.filter(pa.array(in_polygon(y_N2, np.asarray(polygon)))).to_pylist()

    @cached_property
    def _everyone(self) -> tuple[pa.Array, np.ndarray]:
        ids, places, rows = [], [], anchors(len(self.ids))
        for names, x_ND in vectors_of(self.dataset, self.column):
            ids.append(names)
            places.append(place_among(x_ND, self.x_MD[rows], self.y_M2[rows]).astype(np.float32))
        if not ids:
            return pa.array([], pa.string()), np.zeros((0, 2), np.float32)
        known, y_N2 = pa.concat_arrays(ids), np.concatenate(places)
        shown = pa.compute.index_in(pa.array(self.ids), value_set=known).to_numpy(zero_copy_only=False)
        y_N2[shown.astype(int)] = self.y_M2
        return known, y_N2


class MapCache:
    """The newest maps that were asked for. Not for several threads at once."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._made: dict[tuple[str, int, int], Layout] = {}

    def get(self, column: Column, points: int) -> dict[str, Any]:
        """frame_ids, x and y of at most `points` frames, spread evenly over the table; of how many (`total`); the version."""
        dataset = self._lake.dataset("frames")
        version = 0 if dataset is None else int(dataset.version)
        layout = self._layout(column.name, points, version)
        return {
            "model": column.spec,
            "version": version,
            "total": layout.total,
            "frame_ids": layout.ids,
            "x": layout.y_M2[:, 0].tolist(),
            "y": layout.y_M2[:, 1].tolist(),
        }

    def inside(self, column: Column, points: int, version: int, polygon: list[tuple[float, float]]) -> list[str]:
        """Ids of all frames inside a polygon of the map that `get` gave of that version. Problem 409 when it is gone."""
        return self._layout(column.name, points, version).inside(polygon)

    def _layout(self, column: str, points: int, version: int) -> Layout:
        key = (column, points, version)
        layout = self._made.pop(key, None) or self._make(*key)
        self._made[key] = layout  # now the newest
        while len(self._made) > KEPT_MAPS:
            del self._made[next(iter(self._made))]
        return layout

    def _make(self, column: str, points: int, version: int) -> Layout:
        try:
            dataset = self._lake.dataset("frames", version) if version else None
        except Exception as e:
            raise Problem(409, "map out of date", STALE) from e
        if dataset is None or column not in dataset.schema.names:
            raise Problem(409, "map out of date", STALE)
        ids, vectors, total = sample_vectors(dataset, column, points)
        return Layout(dataset, column, ids, vectors, np.round(project(vectors).astype(np.float64), 4), total)


def vectors_of(dataset: Any, column: str) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Streams the ids of frames that have a vector, and the vectors, float32 (n, D)."""
    scanner = dataset.scanner(
        columns=["frame_id", column], filter=f"{column} IS NOT NULL", batch_size=8192, scan_in_order=True
    )
    for batch in scanner.to_batches():
        if batch.num_rows:
            cells = batch.column(1)
            yield batch.column(0), list_values(cells, cells.type.list_size).astype(np.float32)


def sample_vectors(dataset: Any, column: str, most: int) -> tuple[list[str], np.ndarray, int]:
    """Frame ids and vectors, float32 (n, D), of every k-th frame that has one, and how many have; n <= most. Streams."""
    total = dataset.count_rows(filter=f"{column} IS NOT NULL")
    every = max(1, -(-total // most))
    ids: list[str] = []
    parts: list[np.ndarray] = []
    seen = 0
    for names, x_ND in vectors_of(dataset, column):
        taken = np.arange((-seen) % every, len(names), every)
        seen += len(names)
        ids += names.take(pa.array(taken)).to_pylist()
        parts.append(x_ND[taken])
    return ids, np.concatenate(parts) if parts else np.zeros((0, 1), np.float32), total


def anchors(count: int) -> np.ndarray:
    """Which of `count` shown points others are placed among."""
    return np.linspace(0, count - 1, min(count, MOST_ANCHORS)).astype(int)


def in_polygon(y_N2: np.ndarray, corners_C2: np.ndarray) -> np.ndarray:
    """bool (N,): which points lie inside a closed polygon, by the even-odd rule."""
    x, y = y_N2[:, 0], y_N2[:, 1]
    odd = np.zeros(len(y_N2), bool)
    for (xi, yi), (xj, yj) in zip(corners_C2, np.roll(corners_C2, 1, axis=0)):
        crosses = (yi > y) != (yj > y)
        if crosses.any():
            odd ^= crosses & (x < (xj - xi) * (y - yi) / (yj - yi if yj != yi else 1) + xi)
    return odd
