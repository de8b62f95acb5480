"""Representatives: what a user would lose if a picture were dropped for one that it does not resemble."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm_ops.curate.representatives import better_neighbours, preference_order, representatives
from vfm_ops.errors import UsageError


def graph(seed: int, n: int, density: float) -> np.ndarray:
    near = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    return near | near.T


def pairs_of(near_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.nonzero(np.triu(near_NN))
    return i, j


def by_hand(near_NN: np.ndarray, place_N: np.ndarray) -> list[int]:
    """The definition: from the best on, an item goes for its best kept neighbour, else it stays."""
    kept, stands = [], list(range(len(place_N)))
    for item in np.argsort(place_N).tolist():
        mine = [k for k in kept if near_NN[item, k]]
        if mine:
            stands[item] = mine[0]
        else:
            kept.append(item)
    return stands


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.02, 0.6))
@settings(max_examples=60)
def test_every_drop_is_a_neighbour_of_what_stays_and_nothing_that_stays_has_a_neighbour(seed, n, density):
    near = graph(seed, n, density)
    place = preference_order(n, [(np.random.default_rng(seed).integers(0, 4, n), "max")])
    stands = representatives([pairs_of(near)], place)
    assert stands.tolist() == by_hand(near, place)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=30)
def test_the_order_and_size_of_batches_change_nothing_and_forgotten_neighbours_drop_nothing(seed, per_item):
    near, rng = graph(seed, 30, 0.4), np.random.default_rng(seed)
    i, j = pairs_of(near)
    nearness, place = rng.random(len(i)).astype(np.float32), rng.permutation(30)
    whole = better_neighbours([(i, j, nearness)], place, per_item)
    shuffled = rng.permutation(len(i))
    parts = [(j[p], i[p], nearness[p]) for p in np.array_split(np.concatenate([shuffled, shuffled[:5]]), 7)]
    for one, other in zip(whole, better_neighbours(parts, place, per_item), strict=True):
        np.testing.assert_array_equal(one, other)
    stands = representatives([(i, j, nearness)], place, per_item=per_item)
    dropped = np.flatnonzero(stands != np.arange(30))
    assert near[dropped, stands[dropped]].all()
    assert (stands[stands[dropped]] == stands[dropped]).all()


def test_a_chain_keeps_every_second_link_however_long_it_is():
    n = 2000
    chain = np.arange(n - 1), np.arange(1, n)
    assert representatives([chain], np.arange(n)).tolist() == [i - i % 2 for i in range(n)]


def test_a_second_opinion_is_asked_of_kept_neighbours_only_and_fixed_items_stay():
    asked = []

    def confirm(item: int, kept: int) -> bool:
        asked.append((item, kept))
        return kept != 0

    everything = np.triu_indices(4, 1)
    told: list[int] = []
    stands = representatives(
        [everything], np.arange(4), confirm=confirm, prepare=lambda items: told.extend(items.tolist())
    )
    assert stands.tolist() == [0, 1, 1, 1]
    assert asked == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert told == [0, 1, 2, 3]
    fixed = np.array([False, False, True, False])
    assert representatives([everything], np.arange(4), fixed_N=fixed).tolist() == [0, 0, 2, 0]


def test_a_thousand_equal_items_hold_few_neighbours_and_leave_one():
    i, j = np.triu_indices(1000, 1)
    worse, _ = better_neighbours([(i, j)], np.arange(1000)[::-1], per_item=8)
    assert len(worse) < 16 * 1000
    assert set(representatives([(i, j)], np.arange(1000)[::-1], per_item=8).tolist()) == {999}


def test_pairs_of_other_items_are_refused():
    with pytest.raises(UsageError, match=r"outside 0\.\.2"):
        representatives([(np.array([0]), np.array([3]))], np.arange(3))
