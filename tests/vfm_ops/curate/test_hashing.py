"""Hash search: what a user would lose if a near hash were missed, or a turned copy not recognised."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm_ops.curate.hashing import exact_groups, hamming, hash_pairs, match_hashes
from vfm_ops.errors import UsageError
from vfm_ops.media.phash import dihedral_phashes


def near_hashes(seed: int, rows: int = 300) -> np.ndarray:
    """Random hashes, half of them others with up to 14 bits flipped."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 2**64, rows, dtype=np.uint64)
    for i in range(rows // 2, rows):
        out[i] = out[rng.integers(rows // 2)]
        for bit in rng.choice(64, rng.integers(15), replace=False):
            out[i] ^= np.uint64(1) << np.uint64(bit)
    return out


def brute_force(left: np.ndarray, right: np.ndarray, radius: int) -> dict[tuple[int, int], int]:
    out = {}
    for i, a in enumerate(left.tolist()):
        for j, b in enumerate(right.tolist()):
            distance = bin(a ^ b).count("1")
            if distance <= radius:
                out[i, j] = distance
    return out


@given(st.integers(0, 10**6), st.integers(0, 13))
@settings(max_examples=15)
def test_every_pair_within_the_radius_is_found_exactly_once(seed, radius):
    hashes = near_hashes(seed, 120)
    found = [pair for batch in hash_pairs(hashes, radius) for pair in zip(*(c.tolist() for c in batch), strict=True)]
    expected = {(i, j): d for (i, j), d in brute_force(hashes, hashes, radius).items() if i < j}
    assert len(found) == len(expected)
    assert {(i, j): d for i, j, d in found} == expected


def test_matching_against_a_reference_equals_brute_force():
    query, reference = near_hashes(1, 80), near_hashes(1, 120)
    matched = match_hashes(query, reference, 9)
    assert {(i, j): d for i, j, d in zip(*(c.tolist() for c in matched), strict=True)} == brute_force(
        query, reference, 9
    )


def test_turned_and_mirrored_photographs_are_found_through_their_views(photographs):
    picture = cv2.imread(str(photographs[0]), cv2.IMREAD_GRAYSCALE)
    other = cv2.imread(str(photographs[1]), cv2.IMREAD_GRAYSCALE)
    turned = [np.ascontiguousarray(np.rot90(picture)), np.ascontiguousarray(picture[:, ::-1])]
    views = np.stack([dihedral_phashes(p) for p in (picture, *turned, other)])
    pairs = list(hash_pairs(views, 6))
    assert {(int(i), int(j)) for b in pairs for i, j in zip(b.i, b.j, strict=True)} == {(0, 1), (0, 2), (1, 2)}
    assert not list(hash_pairs(views[:, 0].copy(), 6))


def test_hamming_counts_differing_bits():
    assert hamming(np.array([0, 2**64 - 1], np.uint64), np.array([7, 0], np.uint64)).tolist() == [3, 64]


def test_equal_digests_name_their_first_item():
    assert exact_groups(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]


def test_bad_requests_say_what_is_wrong():
    with pytest.raises(UsageError, match="uint64"):
        list(hash_pairs(np.zeros(3, np.int64), 2))
    with pytest.raises(UsageError, match="between 0 and 31"):
        list(hash_pairs(np.zeros(3, np.uint64), 40))
