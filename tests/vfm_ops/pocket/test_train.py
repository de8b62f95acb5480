"""If these fail, the pocket models' training loops do not do what their cards say."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from vfm_ops.pocket import clip
from vfm_ops.pocket.train import Average, descend, optimisers, replayed, scheduled_lr


def test_average_follows_its_definition_and_gives_the_model_back():
    model = torch.nn.Linear(3, 2)
    average, expected = Average(model, decay=0.9), model.weight.detach().double().clone()
    for n in range(1, 200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        keep = min(0.9, n / (n + 9))
        expected = keep * expected + (1 - keep) * model.weight.detach().double()
    own = model.weight.detach().clone()
    with average.applied():
        assert torch.allclose(model.weight.double(), expected, atol=1e-4)
    assert torch.equal(model.weight, own)
    average.adopt()
    assert torch.allclose(model.weight.double(), expected, atol=1e-4)


def test_every_parameter_is_updated_by_exactly_one_optimiser():
    model = torch.nn.Sequential(torch.nn.Embedding(7, 8), torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
    both = optimisers(model, 1e-2)
    owned = [id(p) for o in both for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    descend(model, both, model(torch.arange(7)).square().sum(), 1e-2)
    assert all(not torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_replay_uses_each_item_about_so_often_and_says_the_same_again():
    once = list(replayed(iter(range(100)), 300, 3, seed=1))
    assert once == list(replayed(itertools.count(), 300, 3, seed=1))
    assert once[::3] == list(range(100))
    assert np.mean(list(Counter(once).values())) == 3


def test_a_longer_run_begins_as_a_shorter_one():
    short = list(replayed(itertools.count(), 30, 3, seed=1))
    assert list(replayed(itertools.count(), 60, 3, seed=1))[:30] == short
    assert scheduled_lr(0, 100, 2.0, 4) == pytest.approx(0.5)
    assert scheduled_lr(3, 100, 2.0, 4) == scheduled_lr(70, 100, 2.0, 4) == 2.0
    assert scheduled_lr(85, 100, 2.0, 4) == pytest.approx(1.0)
    assert scheduled_lr(99, 100, 2.0, 4) == pytest.approx(2 / 30)


def test_kept_patches_are_the_touched_ones_with_their_own_truth():
    batch = clip.make_batch(0, 6, 3)
    kept = clip.keep_patches(batch, 40, np.random.default_rng(0))
    grid = clip.SIZE // clip.PATCH
    for b in range(6):
        touched = set(np.flatnonzero(batch["cells"][b].sum(1) > 0))
        assert len(set(kept["kept"][b])) == 40
        assert touched <= set(kept["kept"][b]) or len(touched) > 40
        for k, place in enumerate(kept["kept"][b]):
            assert np.array_equal(kept["cells"][b, k], batch["cells"][b, place])
            word = kept["patch_shape"][b, k]
            assert word == batch["patch_shape"][b, place]
            if word >= 0:
                # The box of the thing that covers this patch reaches it.
                centre = (np.array([place % grid, place // grid]) + 0.5) / grid
                middle, size = centre + kept["patch_box"][b, k, :2], kept["patch_box"][b, k, 2:]
                assert (np.abs(middle - centre) <= size / 2 + 0.5 / grid + 1e-6).all()
                assert batch["shape"][b, word] > 0
