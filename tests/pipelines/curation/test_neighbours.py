"""Neighbours found part by part, and of new vectors among old ones, against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.bench.curate_algorithms import clustered_vectors
from pipelines.curation import neighbours
from pipelines.curation.neighbours import old_neighbours, semantic_pairs
from pipelines.curation.vectors import Vectors, VectorSource
from pipelines.lake import Lake, embedding_field
from vfm_ops.curate.kmeans import KMeansOptions, kmeans
from vfm_ops.curate.neighbours import NeighbourOptions

DIM, ROWS = 64, 6000


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Vectors, np.ndarray]:
    """6,000 vectors in a lake, one in ten a near-copy, and the same as float64 units."""
    lake = Lake.create(tmp_path_factory.mktemp("neighbours") / "lake")
    field = embedding_field("timm:tiny", DIM, {"digest": "d"})
    lake.ensure("frames", [field])
    x = clustered_vectors(ROWS, DIM, seed=3).astype(np.float16)
    schema = lake.schema("frames")
    columns = {"frame_id": [f"a:{i}" for i in range(ROWS)], "asset_id": ["a"] * ROWS, "run_key": ["r.1"] * ROWS}
    columns[field.name] = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    lake.commit(
        "frames",
        lake.write_fragments("frames", pa.table([columns.get(f.name, pa.nulls(ROWS, f.type)) for f in schema], schema)),
    )
    source = VectorSource(lake.root, lake.dataset("frames").version, field.name, DIM)
    unit = x.astype(np.float64)
    return Vectors(source, np.arange(ROWS), workers=2), unit / np.linalg.norm(unit, axis=1, keepdims=True)


def brute_pairs(x: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    i, j = np.nonzero(np.triu(x @ x.T >= threshold, 1))
    return set(zip(i.tolist(), j.tolist()))


@pytest.mark.parametrize("in_memory", [400_000, 1500])
def test_pairs_found_part_by_part_are_those_of_all_at_once(stored, monkeypatch, in_memory):
    monkeypatch.setattr(neighbours, "IN_MEMORY_ROWS", in_memory)
    vectors, x = stored
    found = {
        pair
        for p in semantic_pairs(vectors, 0.95, NeighbourOptions(reach=1.0, neighbour_cells=0, workers=1))
        for pair in zip(p.i.tolist(), p.j.tolist())
    }
    truth = brute_pairs(x, 0.95)
    assert len(truth) > 200
    sure = brute_pairs(x, 0.951)
    assert sure <= found
    assert found <= brute_pairs(x, 0.949)


def test_old_neighbours_of_new_vectors_are_found_in_the_cells_nearby(stored):
    vectors, x = stored
    old, new = np.arange(0, 5000), np.arange(5000, ROWS)
    clusters = kmeans(x[old].astype(np.float32), 100, KMeansOptions(metric="cosine", iterations=5, workers=1))
    n, o, cosine = old_neighbours(
        vectors.only(new), vectors.only(old), clusters.labels_N.astype(np.int64), clusters.centroids_KD, 0.95
    )
    found = set(zip(n.tolist(), o.tolist()))
    a, b = np.nonzero(x[new] @ x[old].T >= 0.95)
    truth = set(zip(a.tolist(), b.tolist()))
    assert len(truth) > 50
    assert len(truth & found) >= 0.97 * len(truth)
    np.testing.assert_allclose(cosine, (x[new][n] * x[old][o]).sum(axis=1), atol=1e-3)
