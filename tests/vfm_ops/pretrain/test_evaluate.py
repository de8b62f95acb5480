"""Figures that decide whether a model is good must be right themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.vfm_ops.pretrain.tiny import build, samples
from vfm_ops.errors import UsageError
from vfm_ops.pretrain import data
from vfm_ops.pretrain.data import batch_positions, fashion_mnist, read_idx
from vfm_ops.pretrain.evaluate import (
    extract_features,
    knn_accuracy,
    linear_probe,
    retrieval_recall,
    ridge_probe,
    zero_shot_accuracy,
)
from vfm_ops.pretrain.registry import OBJECTIVES, build_objective, small_preset
from vfm_ops.pretrain.train_config import train_config


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (count,), generator=generator)
    centre = torch.tensor([[3.0, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]])
    return centre[label] + 1.2 * torch.randn(count, 4, generator=generator), label


def test_knn_equals_a_vote_counted_by_hand():
    (bank, bank_label), (query, label) = blobs(60, 1), blobs(40, 2)
    right = 0
    for q, want in zip(query, label, strict=True):
        cosine = F.cosine_similarity(q[None].double(), bank.double())
        votes = [0.0, 0.0, 0.0]
        for i in cosine.argsort(descending=True)[:7].tolist():
            votes[int(bank_label[i])] += float(torch.exp(cosine[i] / 0.07))
        right += int(np.argmax(votes) == int(want))
    assert knn_accuracy(bank, bank_label, query, label, k=7) == right / 40
    with pytest.raises(UsageError, match="k = 61 neighbours"):
        knn_accuracy(bank, bank_label, query, label, k=61)


def test_probes_agree_with_scipys_solution_and_find_the_separating_plane():
    from scipy.optimize import minimize

    (train, label), (test, test_label) = blobs(200, 1), blobs(500, 2)
    mean, std = train.double().mean(0), train.double().std(0)
    x, z = ((t.double() - mean).numpy() / std.numpy() for t in (train, test))

    def objective(w: np.ndarray) -> float:
        logits = x @ w[:12].reshape(4, 3) + w[12:]
        logits = logits - logits.max(1, keepdims=True)
        nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(200), label.numpy()]
        return float(nll.mean() + 1e-2 * np.square(w[:12]).sum())

    w = minimize(objective, np.zeros(15), method="BFGS").x
    want = ((z @ w[:12].reshape(4, 3) + w[12:]).argmax(1) == test_label.numpy()).mean()
    assert linear_probe(train, label, test, test_label, penalty=1e-2) == pytest.approx(want, abs=0.005)
    assert ridge_probe(train, label, test, test_label) > 0.85
    shuffled = label[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(train, shuffled, test, test_label) < 0.6


def test_zero_shot_and_retrieval_equal_their_definitions():
    image = torch.eye(3)
    prompts = torch.stack([torch.stack([row + 0.1, row * 2]) for row in torch.eye(3)])
    assert zero_shot_accuracy(image, prompts, torch.tensor([0, 1, 2])) == 1
    assert zero_shot_accuracy(image, prompts, torch.tensor([0, 2, 1])) == pytest.approx(1 / 3)
    target = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    recall = retrieval_recall(image, target, [{1}, {2}, {0}], ks=(1, 2, 10))
    assert recall == pytest.approx({1: 1 / 3, 2: 2 / 3, 10: 1.0})


def test_evaluation_drops_no_image_and_keeps_their_order():
    objective, images = build("simclr"), samples(23).images
    features = extract_features(objective, images, batch=8)
    assert features.shape == (23, 24)
    torch.testing.assert_close(features[17:18], extract_features(objective, images[17:18]), rtol=1e-4, atol=1e-5)


def test_damaged_data_files_are_named(tmp_path):
    (tmp_path / "x").write_bytes(b"\0\0\x08\x01\0\0\0\x05abc")
    with pytest.raises(UsageError, match="cut off"):
        read_idx(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"something else")
    with pytest.raises(UsageError, match="no idx file"):
        read_idx(tmp_path / "y")
    with pytest.raises(UsageError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_small_presets_are_valid_and_their_batches_fit(name):
    small = small_preset(name)
    settings, training = small.model, small.training
    objective, config = build_objective(name, **settings), train_config(name, **training)
    objective.prepare(config.total_steps(60000), config.steps_per_epoch(60000), config.batch_size)
    assert sum(p.numel() for p in objective.backbone.parameters()) < 1e6


def test_supervised_preset_learns_real_images_within_seconds(fashion_mnist):
    from vfm_ops.pretrain.fit import fit

    train, test = data.fashion_mnist(fashion_mnist, "train"), data.fashion_mnist(fashion_mnist, "test")
    assert (len(train), len(test), train.images.shape[1:]) == (60000, 10000, (28, 28, 1))
    small = small_preset("supervised")
    settings, training = small.model, small.training
    config = train_config("supervised", **{**training, "batch_size": 64, "epochs": 0.05, "warmup_epochs": 0.005})
    torch.manual_seed(0)
    objective = build_objective("supervised", **settings)
    bank, label = train.images[:1000], torch.tensor(train.labels[:1000])
    few, few_label = test.images[:1000], torch.tensor(test.labels[:1000])
    before = linear_probe(extract_features(objective, bank), label, extract_features(objective, few), few_label)
    fit(objective, train, config, until_step=46)
    after = linear_probe(extract_features(objective, bank), label, extract_features(objective, few), few_label)
    assert after > before + 0.03
    assert len({i for step in range(46) for _, i in batch_positions(step, 64, 60000, 0)}) == 46 * 64
