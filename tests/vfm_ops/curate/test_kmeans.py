"""k-means: what a user would lose if clusters depended on workers, were worse than faiss's, or came from bad vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import optional_package
from vfm_ops.curate.blocks import Block, iterate_blocks, local_map, row_uniform, sample_rows
from vfm_ops.curate.kernels import assign_block
from vfm_ops.curate.kmeans import (
    Broadcast,
    KMeansOptions,
    Partials,
    kmeans,
    merge_partials,
    partial_sums,
    update_centroids,
)
from vfm_ops.curate.kmeans_init import initial_centroids, kmeans_plus_plus
from vfm_ops.errors import UsageError


def blobs(rows: int = 3000, dim: int = 16, clusters: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label_N = rng.integers(clusters, size=rows)
    x_ND = rng.standard_normal((clusters, dim))[label_N] * 4 + 0.3 * rng.standard_normal((rows, dim))
    return x_ND.astype(np.float32), label_N


def brute_force(x_ND: np.ndarray, c_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square_NK = ((x_ND[:, None].astype(np.float64) - c_KD[None].astype(np.float64)) ** 2).sum(axis=2)
    return square_NK.argmin(axis=1), square_NK.min(axis=1)


def test_assignment_equals_float64_brute_force():
    x_ND, _ = blobs(500)
    c_KD = np.random.default_rng(1).standard_normal((37, 16)).astype(np.float32) * 3
    label_N, square_N = assign_block(x_ND, c_KD)
    expected_N, distance_N = brute_force(x_ND, c_KD)
    assert np.array_equal(label_N, expected_N)
    assert np.allclose(square_N, distance_N, rtol=1e-4)


def test_fast_assignment_is_within_a_percent_of_the_nearest_distance():
    x_ND = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    c_KD = x_ND[::20] * 0.5
    label_N, square_N = assign_block(x_ND, c_KD, precision="bf16")
    _, distance_N = brute_force(x_ND, c_KD)
    assert square_N.sum() <= 1.01 * distance_N.sum()
    own_N = ((x_ND - c_KD[label_N]) ** 2).sum(axis=1)
    assert np.allclose(square_N, own_N, rtol=1e-4)


def test_rows_far_from_every_centroid_still_find_the_nearest_in_bfloat16():
    # All scores negative: rows on the far side of the shift from every centroid.
    x_ND = -10 * np.ones((64, 8), np.float32) + np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    c_KD = np.array([[10.0] * 8, [4.0] * 8, [7.0] * 8], np.float32)
    label_N, _ = assign_block(x_ND, c_KD, shift_D=np.zeros(8, np.float32), precision="bf16")
    assert (label_N == 1).all()


def test_well_separated_groups_are_recovered():
    x_ND, truth_N = blobs()
    result = kmeans(x_ND, 12, KMeansOptions(seed=3))
    pairs = set(zip(result.labels_N.tolist(), truth_N.tolist(), strict=True))
    assert len(pairs) == 12
    assert result.inertia == pytest.approx(brute_force(x_ND, result.centroids_KD)[1].sum(), rel=1e-4)


def test_inertia_is_no_worse_than_faiss_from_the_same_start():
    x_ND = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
    start_KD = x_ND[:50].copy()
    theirs = optional_package("faiss").Kmeans(32, 50, niter=15, max_points_per_centroid=10**6)
    theirs.train(x_ND, init_centroids=start_KD)
    their_inertia = float(theirs.index.search(x_ND, 1)[0].sum(dtype=np.float64))
    ours = kmeans(x_ND, 50, KMeansOptions(iterations=15, tol=0.0), centroids_KD=start_KD)
    assert ours.inertia <= 1.005 * their_inertia


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_same_clusters_bit_for_bit_for_any_workers_and_order_of_blocks(metric):
    x_ND, _ = blobs(5000)
    options = KMeansOptions(metric=metric, iterations=5, tol=0.0)

    def backwards(step, broadcast):
        blocks = list(iterate_blocks(x_ND, 512))[::-1]
        parts = [step.map(Block(b.start, b.x_ND), broadcast) for b in blocks]
        yield step.merge(parts[0], parts[1])
        yield from parts[2:]

    maps = [local_map(x_ND, workers, 512) for workers in (1, 3)] + [backwards]
    results = [kmeans(None, 9, options, map_blocks=m) for m in maps]
    for other in results[1:]:
        assert np.array_equal(results[0].centroids_KD, other.centroids_KD)
        assert np.array_equal(results[0].labels_N, other.labels_N)


@given(st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=20)
def test_partial_sums_merge_exactly_in_any_order_and_grouping(order, cut):
    x_ND, _ = blobs(600, dim=5)
    broadcast = Broadcast(x_ND[:4].copy(), x_ND.mean(axis=0), 2.0**-20)
    parts = [partial_sums(block, broadcast) for block in iterate_blocks(x_ND, 100)]

    def total(chosen: list[Partials]) -> Partials:
        out = chosen[0]
        for part in chosen[1:]:
            out = merge_partials(out, part)
        return out

    expected = total(parts)
    mixed = [parts[i] for i in order]
    merged = merge_partials(total(mixed[:cut]), total(mixed[cut:]))
    assert np.array_equal(expected.sum_KD, merged.sum_KD)
    assert [f[0] for f in expected.far] == [f[0] for f in merged.far]


def test_update_is_the_mean_of_each_cluster():
    x_ND, _ = blobs(400)
    c_KD = x_ND[:6].copy()
    label_N, _ = brute_force(x_ND, c_KD)
    new_KD = update_centroids(partial_sums(Block(0, x_ND), Broadcast(c_KD, x_ND.mean(axis=0), 2.0**-20)), c_KD)
    for k in range(6):
        assert np.allclose(new_KD[k], x_ND[label_N == k].astype(np.float64).mean(axis=0), atol=1e-5)


def test_an_empty_cluster_moves_to_the_farthest_row():
    x_ND = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 1.0), [[9.0, 9.0]]]).astype(np.float32)
    start_KD = np.array([[0, 0], [1, 1], [-50, -50]], np.float32)
    result = kmeans(x_ND, 3, KMeansOptions(iterations=5), centroids_KD=start_KD)
    assert result.counts_K.tolist() == [20, 20, 1]
    assert result.inertia == pytest.approx(0.0, abs=1e-6)


def test_minibatch_comes_close_to_full_lloyd():
    x_ND, _ = blobs(4000)
    full = kmeans(x_ND, 12, KMeansOptions(seed=1)).inertia
    mini = kmeans(x_ND, 12, KMeansOptions(seed=1, algorithm="minibatch", batch_rows=256, iterations=5)).inertia
    assert mini <= 1.1 * full


def test_cosine_clusters_by_direction_and_ignores_length():
    x_ND, truth_N = blobs(600, clusters=5)
    scaled_ND = x_ND * np.random.default_rng(0).uniform(0.1, 10, (600, 1)).astype(np.float32)
    result = kmeans(scaled_ND, 5, KMeansOptions(metric="cosine", seed=1))
    assert len(set(zip(result.labels_N.tolist(), truth_N.tolist(), strict=True))) == 5
    assert np.allclose(np.linalg.norm(result.centroids_KD, axis=1), 1, atol=1e-5)


def test_plus_plus_never_draws_a_row_twice_even_among_copies():
    x_ND = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    picks = kmeans_plus_plus(x_ND, np.ones(15), 7, np.random.default_rng(0))
    assert len(set(picks.tolist())) == 7
    assert {p // 5 for p in picks[:3].tolist()} == {0, 1, 2}


@pytest.mark.parametrize("init", ["k-means++", "k-means||"])
def test_spread_starts_beat_random_ones(init):
    x_ND, _ = blobs(3000, clusters=30)
    spread = [brute_force(x_ND, initial_centroids(x_ND, 30, init, s))[1].sum() for s in range(3)]
    plain = [brute_force(x_ND, initial_centroids(x_ND, 30, "random", s))[1].sum() for s in range(3)]
    assert np.mean(spread) < 0.7 * np.mean(plain)


def test_row_lottery_is_uniform_and_independent_of_how_rows_are_split():
    u_N = row_uniform(np.arange(20000), seed=5)
    assert np.array_equal(u_N[7000:], row_uniform(np.arange(7000, 20000), seed=5))
    assert np.abs(np.histogram(u_N, 20, (0, 1))[0] - 1000).max() < 150
    assert not np.array_equal(sample_rows(1000, 10, 0), sample_rows(1000, 10, 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.__setitem__((slice(7, 9), 3), np.nan), "2 of 100 vectors hold NaN.*row 7"),
        (lambda x: x.__setitem__(slice(20, 23), 0), "3 of 100 vectors hold only zeros.*row 20"),
    ],
)
def test_bad_vectors_are_counted_and_the_first_is_named(spoil, message):
    x_ND = np.ones((100, 8), np.float32)
    spoil(x_ND)
    with pytest.raises(UsageError, match=message):
        kmeans(x_ND, 3, KMeansOptions(metric="cosine"))


def test_impossible_requests_say_what_is_wrong():
    x_ND = np.ones((10, 4), np.float32)
    with pytest.raises(UsageError, match=r"11 clusters.*only 10 items"):
        kmeans(x_ND, 11)
    with pytest.raises(UsageError, match="no vectors"):
        kmeans(x_ND[:0], 1)
    with pytest.raises(UsageError, match="must be one of l2, cosine"):
        KMeansOptions(metric="manhattan")
    with pytest.raises(UsageError, match=r"dimension 4.*centroids have 5"):
        assign_block(x_ND, np.ones((2, 5), np.float32))
    with pytest.raises(UsageError, match="different dimensions"):
        kmeans(lambda: iter([np.ones((3, 4), np.float32), np.ones((3, 5), np.float32)]), 2)
