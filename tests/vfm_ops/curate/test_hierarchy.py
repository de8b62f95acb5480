"""Hierarchies and balanced samples: what a user would lose if rare kinds were lost, or a target missed by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench.curate_algorithms import kl_to_uniform, rings
from vfm_ops.curate.balance import sample_balanced, spread
from vfm_ops.curate.hierarchy import Hierarchy, HierarchyOptions, Level, build_hierarchy, nearest_rows
from vfm_ops.curate.kmeans import KMeansOptions
from vfm_ops.errors import UsageError


def small_rings() -> tuple[np.ndarray, np.ndarray]:
    return rings(0, sizes=(4000, 120, 300, 200, 1600))


def test_two_levels_flatten_unequal_rings_and_one_level_less_so():
    x_ND, class_N = small_rings()
    flat = build_hierarchy(x_ND, HierarchyOptions((200,), resamplings=0))
    deep = build_hierarchy(x_ND, HierarchyOptions((400, 40), resamplings=6, kmeans=KMeansOptions(iterations=20)))
    plain = kl_to_uniform(class_N[np.random.default_rng(0).choice(len(class_N), 300, replace=False)], 5)
    one = kl_to_uniform(class_N[sample_balanced(flat, 300).rows], 5)
    two = kl_to_uniform(class_N[sample_balanced(deep, 300).rows], 5)
    assert two < 0.06
    assert two < one < plain


def test_paths_lead_from_the_coarsest_cluster_to_the_finest():
    x_ND, _ = small_rings()
    hierarchy = build_hierarchy(x_ND, HierarchyOptions((60, 20, 5), resamplings=1))
    path_NT = hierarchy.paths()
    assert path_NT.shape == (len(x_ND), 3)
    assert (np.unique(path_NT[:, :2], axis=0)[:, 1].size, len(np.unique(path_NT[:, 2]))) == (
        len(hierarchy.levels[1].centroids_KD),
        len(hierarchy.levels[0].centroids_KD),
    )


def test_nearest_rows_are_the_r_smallest_distances_of_each_cluster():
    rng = np.random.default_rng(0)
    label_N, square_N = rng.integers(5, size=200), rng.random(200)
    expected = np.sort(
        np.concatenate([m[np.argsort(square_N[m])[:4]] for m in (np.flatnonzero(label_N == k) for k in range(5))])
    )
    assert np.array_equal(nearest_rows(label_N, square_N, 4), expected)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.data())
@settings(max_examples=100)
def test_quotas_meet_the_target_exactly_and_are_as_even_as_sizes_allow(sizes, data):
    size_K = np.array(sizes)
    target = data.draw(st.integers(0, int(size_K.sum())))
    quota_K = spread(size_K, target, np.arange(len(sizes)))
    assert quota_K.sum() == target
    assert (quota_K <= size_K).all()
    full_K = quota_K == size_K
    if (~full_K).any():
        # No cluster that could give more gives less than another one, but for the last shared unit.
        assert quota_K.max() - quota_K[~full_K].min() <= 1


def toy(sizes: list[int], parents: list[int]) -> Hierarchy:
    label_N = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    fine = Level(np.zeros((len(sizes), 1), np.float32), label_N, np.arange(len(label_N), dtype=np.float32))
    coarse = Level(
        np.zeros((max(parents) + 1, 1), np.float32), np.array(parents, np.int32), np.zeros(len(parents), np.float32)
    )
    return Hierarchy((fine, coarse))


def test_quotas_are_balanced_at_the_top_before_the_bottom():
    sample = sample_balanced(toy([50, 50, 50, 50], [0, 0, 0, 1]), 40)
    assert sample.quota_K[3] == 20
    assert sorted(sample.quota_K[:3].tolist()) == [6, 7, 7]
    assert len(set(sample.rows.tolist())) == 40


def test_nearest_within_takes_the_rows_closest_to_the_centroid():
    sample = sample_balanced(toy([10, 10], [0, 1]), 6, within="nearest")
    assert sample.rows.tolist() == [0, 1, 2, 10, 11, 12]


def test_replacement_repeats_rows_of_small_clusters():
    sample = sample_balanced(toy([2, 100], [0, 1]), 20, replacement=True)
    assert sample.quota_K.tolist() == [10, 10]
    assert np.bincount(sample.rows, minlength=102)[:2].tolist() == [5, 5]


def test_ineligible_rows_are_never_drawn_and_the_same_seed_draws_the_same():
    hierarchy = toy([30, 30], [0, 1])
    eligible_N = np.arange(60) % 3 == 0
    first = sample_balanced(hierarchy, 8, seed=4, eligible_N=eligible_N)
    assert eligible_N[first.rows].all()
    assert np.array_equal(first.rows, sample_balanced(hierarchy, 8, seed=4, eligible_N=eligible_N).rows)
    assert not np.array_equal(first.rows, sample_balanced(hierarchy, 8, seed=5, eligible_N=eligible_N).rows)


def test_impossible_requests_say_what_is_wrong():
    with pytest.raises(UsageError, match=r"sample of 61.*only 60 items"):
        sample_balanced(toy([30, 30], [0, 1]), 61)
    with pytest.raises(UsageError, match="must decrease"):
        HierarchyOptions((10, 20))
    with pytest.raises(UsageError, match=r"30 clusters.*only 20 items"):
        build_hierarchy(np.random.default_rng(0).random((20, 2)).astype(np.float32), HierarchyOptions((30, 5)))
