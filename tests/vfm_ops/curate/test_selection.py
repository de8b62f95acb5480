"""Decontamination, pruning, retrieval and reasons: what a user would lose if a leak stayed, or a fate had no reason."""

from __future__ import annotations

import numpy as np
import pytest

from vfm_ops.curate.blocks import local_map
from vfm_ops.curate.classes import balanced_rows, classify, fit_discriminant
from vfm_ops.curate.decontaminate import EvaluationSet, find_contamination
from vfm_ops.curate.explain import Reason, cluster_path, reason_kinds
from vfm_ops.curate.retrieval import nearest_rows_of
from vfm_ops.curate.sampling import cluster_redundancy, retrieve_clusters, retrieve_nearest, semantic_duplicates
from vfm_ops.errors import UsageError


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    x_ND = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def test_near_copies_of_evaluation_items_are_listed_with_their_cause():
    data_ND, exam_MD = unit(300), unit(20, seed=1)
    data_ND[[17, 250]] = exam_MD[[3, 9]] + 0.02 * unit(2, seed=2)
    found = find_contamination([EvaluationSet("exam", exam_MD)], source=data_ND, cosine=0.95)
    assert [(c.row, c.evaluation, c.evaluation_row) for c in found] == [(17, "exam", 3), (250, "exam", 9)]
    assert found[0].cosine == pytest.approx(float(data_ND[17] @ exam_MD[3] / np.linalg.norm(data_ND[17])), abs=1e-5)


def test_contamination_by_hash_works_without_embeddings():
    hashes = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    exam = EvaluationSet("exam", hashes=np.array([hashes[7] ^ np.uint64(0b101)]))
    (found,) = find_contamination([exam], hashes=hashes, radius=4)
    assert (found.row, found.distance, found.cosine) == (7, 2, None)


def test_another_embedding_space_is_refused():
    with pytest.raises(UsageError, match="'exam' has vectors of dimension 8, but the data has 16"):
        find_contamination([EvaluationSet("exam", unit(3, 8))], source=unit(10))
    with pytest.raises(UsageError, match="model aaa, but the data by bbb"):
        find_contamination([EvaluationSet("exam", unit(3), model_digest="aaa")], source=unit(10), model_digest="bbb")
    with pytest.raises(UsageError, match="dimension 8"):
        retrieve_nearest(local_map(unit(10)), unit(2, 8))
    with pytest.raises(UsageError, match="can't be compared"):
        find_contamination([EvaluationSet("exam")], source=unit(10))


def test_redundancy_is_the_highest_cosine_to_an_earlier_row_of_the_cluster():
    x_ND, label_N = unit(120, 4), np.arange(120) % 3
    centroid_KD = np.stack([x_ND[label_N == k].mean(axis=0) for k in range(3)])
    found = cluster_redundancy(x_ND, label_N, centroid_KD, keep="far")
    for k in range(3):
        rows = np.flatnonzero(label_N == k)
        order = rows[np.argsort(x_ND[rows] @ centroid_KD[k])]
        assert found.twin[order[0]] == -1
        for position, row in enumerate(order[1:], start=1):
            cosine = x_ND[order[:position]] @ x_ND[row]
            assert found.cosine[row] == pytest.approx(cosine.max(), abs=1e-5)
            assert found.twin[row] == order[cosine.argmax()]


def test_pruning_drops_one_of_each_twin_and_keeps_the_untypical():
    x_ND = np.array([[1, 0], [1, 0.01], [0.5, 1], [1, 0]], np.float32)
    redundancy = cluster_redundancy(x_ND, np.zeros(4, int), np.array([[1.0, 0.1]]))
    drop_N = semantic_duplicates(redundancy, epsilon=0.01)
    assert not drop_N[2]
    assert drop_N.sum() == 2


def test_nearest_rows_over_blocks_equal_brute_force():
    data_ND, query_QD = unit(500), unit(7, seed=3)
    top = nearest_rows_of(local_map(data_ND, 2, block_rows=64), query_QD, 5)
    expected_QK = np.argsort(-(query_QD.astype(np.float64) @ data_ND.T.astype(np.float64)), axis=1)[:, :5]
    assert np.array_equal(top.rows, expected_QK)


def test_retrieved_rows_come_once_with_their_nearest_seed():
    data_ND, seed_SD = unit(200), unit(6, seed=4)
    found = retrieve_nearest(local_map(data_ND), seed_SD, 4)
    assert len(set(found.rows.tolist())) == len(found.rows)
    score_SN = seed_SD @ data_ND.T
    top_SK = np.argsort(-score_SN, axis=1)[:, :4]
    assert set(found.rows.tolist()) == set(top_SK.ravel().tolist())
    for row, seed in zip(found.rows, found.seed, strict=True):
        rivals = [s for s in range(6) if row in top_SK[s]]
        assert seed == max(rivals, key=lambda s: score_SN[s, row])


def test_more_neighbours_than_rows_gives_all_rows():
    found = retrieve_nearest(local_map(unit(3)), unit(2, seed=1), 10)
    assert found.rows.tolist() == [0, 1, 2]


def test_whole_clusters_around_seeds_are_retrieved_up_to_a_cap():
    centroid_KD = np.eye(3, dtype=np.float32)
    label_N = np.repeat([0, 1, 2], 10)
    seed_SD = np.array([[1, 0.1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    assert retrieve_clusters(seed_SD, centroid_KD, label_N).rows.tolist() == [*range(10), *range(20, 30)]
    found = retrieve_clusters(seed_SD, centroid_KD, label_N, min_seeds=2, per_cluster=4)
    assert len(found.rows) == 4
    assert set(found.rows.tolist()) <= set(range(10))
    assert set(found.seed.tolist()) == {1}


def test_every_reason_reads_as_one_line():
    facts = {
        "other": "cat.jpg", "distance": 3, "cosine": 0.98, "start_s": 1.0, "end_s": 2.5, "evaluation": "coco", "item": 7,
        "cluster": cluster_path([12, 3]), "quota": 4, "size": 90, "flaw": "blurred", "measure": "sharpness", "value": 12.3,
        "limit": 50, "count": 3, "label": "cat", "preference": "resolution", "seed": 5,
    }  # fmt: skip
    texts = {kind: Reason(kind, facts).text for kind in reason_kinds()}
    assert all("\n" not in t and t.startswith(("kept: ", "dropped: ")) for t in texts.values())
    assert texts["over_represented"] == "dropped: over-represented cluster 12/3 (4 of 90 kept)"
    assert texts["contaminates"] == "dropped: contaminates coco (item 7)"
    assert texts["quality"] == "dropped: too blurred (sharpness 12.3, limit 50)"
    assert Reason("passed").kept


def test_a_reason_without_its_facts_is_refused():
    with pytest.raises(UsageError, match="'semantic_duplicate' lacks"):
        Reason("semantic_duplicate", {"other": "a"})
    with pytest.raises(UsageError, match="unknown reason 'bored'"):
        Reason("bored")


def test_classes_of_seeds_are_retrieved_in_equal_numbers_however_rare_they_are():
    rng = np.random.default_rng(0)
    centre_CD = 2 * unit(3)
    sizes = (3000, 300, 40)
    truth = np.repeat(np.arange(3), sizes)
    data_ND = (centre_CD[truth] + rng.normal(0, 0.4, (len(truth), 16))).astype(np.float32)
    class_S = np.repeat(np.arange(3), 30)
    seed_SD = (centre_CD[class_S] + rng.normal(0, 0.4, (90, 16))).astype(np.float32)
    found = classify(local_map(data_ND, block_rows=700), fit_discriminant(seed_SD, class_S), {})
    assert (found.class_N == truth).mean() > 0.97
    whole = classify(local_map(data_ND, workers=2), fit_discriminant(seed_SD, class_S), {})
    assert (whole.class_N == found.class_N).all()
    kept = balanced_rows(found, 240)
    assert (np.diff(kept) > 0).all()
    count = np.bincount(found.class_N[kept], minlength=3)
    assert count[2] == (found.class_N == 2).sum()  # all that there are
    assert abs(count[0] - count[1]) <= 1
    assert count.sum() == 240
    assert len(balanced_rows(found, 10**6)) == len(data_ND)
    with pytest.raises(UsageError, match="two classes or more"):
        fit_discriminant(seed_SD, np.zeros(90, int))
    with pytest.raises(UsageError, match="dimension 8"):
        classify(local_map(unit(4)), fit_discriminant(unit(6, 8), np.arange(6) % 2), {})
