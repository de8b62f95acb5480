"""A run on more ranks must be the same run: same loss, same gradient, and no more memory than promised."""

from __future__ import annotations

import json

import pytest
import torch.multiprocessing as mp

from tests.vfm_ops.pretrain.losses.cases import CASES, GATHERS
from tests.vfm_ops.pretrain.losses.ranks import CLIPPED, STEPPED, measure

WORLDS = (1, 2, 4)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[int, dict]:
    """One spawn for each world size runs all checks."""
    folder = tmp_path_factory.mktemp("ranks")
    measure(0, 1, str(folder))
    for world in WORLDS[1:]:
        mp.spawn(measure, args=(world, str(folder)), nprocs=world)
    return {world: json.loads((folder / f"errors-{world}.json").read_text()) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_more_ranks_give_the_gradient_of_one_global_batch(reports, case, world):
    worst = max(reports[world]["exact"][case].items(), key=lambda item: item[1])
    assert worst[1] < 1e-6, f"{case} on {world} ranks differs in {worst[0]}"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", GATHERS)
def test_a_detached_gather_is_noticed(reports, case, world):
    planted = reports[world]["planted"][case]
    assert planted["value"] < 1e-6, "the logged loss is right, which is why only gradients can tell"
    assert max(error for name, error in planted.items() if name != "value") > 1e-3


def test_ring_logits_do_not_grow_with_the_world(reports):
    ring = {world: reports[world]["logits"]["ring"] for world in WORLDS}
    assert ring[1] == ring[2] == ring[4] > 0
    gathered = {world: reports[world]["logits"]["gather"] for world in WORLDS}
    assert gathered[4] >= 2 * gathered[1] > 2 * ring[1], "the measure must see memory that does grow"


@pytest.mark.parametrize("name", STEPPED)
def test_objectives_end_with_the_same_weights_on_two_ranks(reports, name):
    """Two whole steps: batch norms, clipping, momentum networks, centres and averaged gradients included."""
    assert reports[2]["stepped"][name] < 1e-6


@pytest.mark.parametrize("name", CLIPPED)
def test_sharded_gradients_are_clipped_and_adapted_as_whole_ones(reports, name):
    """By the norm of all, of each network or of each parameter; with scalars that are not sharded among them."""
    assert reports[2]["sharded"][name] < 1e-5
