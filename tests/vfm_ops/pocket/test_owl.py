"""If these fail, the detector is taught wrong phrases or wrong boxes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vfm_ops.pocket import owl, phrases
from vfm_ops.world.vocabulary import kinds


def _kind(colour: str, texture: str, shape: str):
    return next(k for k in kinds() if (k.colour, k.texture, k.shape) == (colour, texture, shape))


def test_random_phrases_are_true_of_what_they_describe_and_false_of_the_opposite():
    rng = np.random.default_rng(0)
    red, blue = _kind("red", "striped", "ring"), _kind("blue", "dotted", "star")
    for _ in range(60):
        phrase = owl.random_phrase(rng, red, "small")
        assert phrase.is_true_of(red, "small")
        assert not phrase.is_true_of(blue, "large")


def test_unsaid_words_assert_nothing():
    phrase = owl.Phrase("striped thing", texture="striped")
    assert phrase.is_true_of(_kind("red", "striped", "ring"), "small")
    assert phrase.is_true_of(_kind("blue", "striped", "star"), "")
    assert not phrase.is_true_of(_kind("red", "plain", "ring"), "small")
    assert phrases.full_phrase(_kind("red", "plain", "ring")).text == "plain red ring"


def test_batches_say_only_what_is_there():
    batch = owl.make_batch(0, 4, 2)
    assert batch["rgb"].shape == (4, owl.SIZE, owl.SIZE, 3)
    for boxes, truth in zip(batch["boxes"], batch["truth"], strict=True):
        assert truth.shape == (len(boxes), len(batch["texts"]))
        corners = owl.to_xyxy(torch.from_numpy(boxes))
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
    assert len(set(batch["texts"])) == len(batch["texts"])


def test_matching_finds_the_cheapest_assignment():
    torch.manual_seed(0)
    grid, things = 3, 3
    logits, boxes = torch.randn(grid * grid, 5), torch.rand(grid * grid, 4)
    truth, wanted = torch.rand(things, 5) < 0.5, torch.rand(things, 4)
    patches, order = owl.match(logits, boxes, truth, wanted)
    assert sorted(order.tolist()) == list(range(things))

    def cost(assignment: tuple[int, ...]) -> float:
        total = 0.0
        for thing, patch in enumerate(assignment):
            asserted = logits[patch].sigmoid()[truth[thing]]
            centre = torch.tensor([(patch % grid + 0.5) / grid, (patch // grid + 0.5) / grid])
            away = float((centre - wanted[thing, :2]).abs().max()) * grid
            total += -2 * float(asserted.mean() if len(asserted) else 0) + 2 * float(
                (boxes[patch] - wanted[thing]).abs().sum()
            )
            total += 5 * max(0.0, away - 1.5) + 0.05 * away
        return total

    best = min(cost(a) for a in itertools.permutations(range(grid * grid), things))
    found = dict(zip(order.tolist(), patches.tolist(), strict=True))
    assert cost(tuple(found[k] for k in range(things))) == pytest.approx(best, abs=1e-4)


def test_resized_positions_keep_the_class_token_and_a_constant_field():
    weight = torch.cat([torch.full((1, 4), 7.0), torch.full((64, 4), 3.0)])
    resized = owl.resize_positions(weight, 12)
    assert resized.shape == (145, 4)
    assert torch.equal(resized[0], weight[0])
    assert torch.allclose(resized[1:], torch.full((144, 4), 3.0))


def test_perfect_predictions_have_almost_no_loss():
    batch = owl.make_batch(1, 2, 0)
    grid = owl.SIZE // 12
    boxes = torch.full((2, grid * grid, 4), 0.5)
    logits = torch.full((2, grid * grid, len(batch["texts"])), -12.0)
    for b in range(2):
        cells = set()
        for box, truth in zip(batch["boxes"][b], batch["truth"][b], strict=True):
            cell = int(box[1] * grid) * grid + int(box[0] * grid)
            assert cell not in cells, "two things share a patch: choose another batch for this test"
            cells.add(cell)
            boxes[b, cell] = torch.from_numpy(box)
            logits[b, cell, torch.from_numpy(truth)] = 12.0
    losses = owl.detection_losses(logits, boxes, batch)
    assert losses["focal"] < 1e-4
    assert losses["l1"] < 1e-6
    assert losses["giou"] < 1e-5
