"""Near-duplicate search and groups: what a user would lose if pairs were missed, repeated or wrongly joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench.curate_algorithms import clustered_vectors
from tests.conftest import optional_package
from vfm_ops.curate.components import connected_components, keep_one
from vfm_ops.curate.neighbours import NeighbourOptions, near_duplicate_pairs
from vfm_ops.errors import UsageError


def found(x_ND: np.ndarray, threshold: float, options: NeighbourOptions) -> dict[tuple[int, int], float]:
    pairs: dict[tuple[int, int], float] = {}
    for batch in near_duplicate_pairs(x_ND, threshold, options):
        for i, j, cosine in zip(*(column.tolist() for column in batch), strict=True):
            assert (i, j) not in pairs
            pairs[i, j] = cosine
    return pairs


def faiss_pairs(x_ND: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    index = optional_package("faiss").IndexFlatIP(x_ND.shape[1])
    index.add(x_ND)
    limits, _, other = index.range_search(x_ND, threshold)
    query = np.repeat(np.arange(len(x_ND)), np.diff(limits.astype(np.int64)))
    return {(int(i), int(j)) for i, j in zip(query, other, strict=True) if i < j}


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_complete_search_finds_exactly_what_faiss_finds(precision):
    x_ND = clustered_vectors(3000, dim=64, seed=1)
    ours = found(x_ND, 0.9, NeighbourOptions.complete(precision=precision, cell_rows=64))
    theirs = faiss_pairs(x_ND, 0.9)
    assert len(theirs) > 100
    borderline = {p for p in theirs ^ set(ours) if abs(float(x_ND[p[0]] @ x_ND[p[1]]) - 0.9) < 1e-5}
    assert theirs ^ set(ours) == borderline
    assert all(abs(float(x_ND[i] @ x_ND[j]) - c) < 1e-5 for (i, j), c in ours.items())


def test_default_search_misses_at_most_one_pair_in_a_hundred():
    x_ND = clustered_vectors(20000, dim=64, seed=2)
    theirs = faiss_pairs(x_ND, 0.9)
    ours = set(found(x_ND, 0.9, NeighbourOptions()))
    assert len(theirs & ours) >= 0.99 * len(theirs)


def test_same_batches_whatever_the_number_of_workers():
    x_ND = clustered_vectors(2000, dim=32, seed=3)
    one = list(near_duplicate_pairs(x_ND, 0.9, NeighbourOptions(workers=1)))
    two = list(near_duplicate_pairs(x_ND, 0.9, NeighbourOptions(workers=2)))
    assert all(np.array_equal(a, b) for p, q in zip(one, two, strict=True) for a, b in zip(p, q, strict=True))


def test_identical_and_too_few_rows_are_no_special_case():
    same_ND = np.ones((5, 8), np.float32)
    assert len(found(same_ND, 0.99, NeighbourOptions())) == 10
    assert found(same_ND[:1], 0.99, NeighbourOptions()) == {}


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 10))
@settings(max_examples=60)
def test_components_of_a_stream_equal_a_graph_search(edges, batch):
    batches = [
        (np.array([i for i, _ in edges[k : k + batch]], int), np.array([j for _, j in edges[k : k + batch]], int))
        for k in range(0, len(edges), batch)
    ]
    near = {i: {i} for i in range(20)}
    for i, j in edges:
        near[i].add(j)
        near[j].add(i)

    def reach(start: int) -> int:
        seen, todo = set(), [start]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(near[node])
        return min(seen)

    assert connected_components(batches, 20).tolist() == [reach(i) for i in range(20)]


def test_the_preferred_copy_is_kept_and_ties_go_to_the_first():
    component_N = np.array([0, 0, 0, 3, 3, 5])
    pixels = np.array([10, 20, 20, 5, np.nan, 1])
    age = np.array([1, 9, 2, 1, 0, 0])
    assert keep_one(component_N, [(pixels, "max"), (age, "min")]).tolist() == [2, 2, 2, 3, 3, 5]
    assert keep_one(component_N).tolist() == [0, 0, 0, 3, 3, 5]


def test_bad_requests_say_what_is_wrong():
    x_ND = np.ones((4, 3), np.float32)
    x_ND[2] = 0
    with pytest.raises(UsageError, match=r"1 of 4 vectors hold only zeros.*row 2"):
        near_duplicate_pairs(x_ND, 0.9)
    with pytest.raises(UsageError, match="threshold"):
        near_duplicate_pairs(x_ND, 1.5)
    with pytest.raises(UsageError, match=r"outside 0\.\.2"):
        connected_components([(np.array([0]), np.array([3]))], 3)
    with pytest.raises(UsageError, match="'max' or 'min'"):
        keep_one(np.zeros(2, int), [(np.zeros(2), "best")])
