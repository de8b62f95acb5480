"""Deduplication of a lake: exact, videos, perceptual, semantic, aligned. Of what is alike one item stays, by preference.

Each item that goes is itself near the one that stays (see `representatives`), and plain pictures are looked at before they
are believed alike (see `looks`). In a second run only pairs with a new item are looked for, and an item that stood before
is always the one that stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.curation.looks import Looks
from pipelines.curation.neighbours import new_pairs, semantic_pairs
from pipelines.curation.pool import Pool
from vfm_ops.curate.components import keep_one
from vfm_ops.curate.hashing import exact_groups, hamming, hash_pairs, match_hashes
from vfm_ops.curate.image_duplicates import image_duplicates
from vfm_ops.curate.kernels import normalised
from vfm_ops.curate.kmeans import available_cores
from vfm_ops.curate.neighbours import NeighbourOptions
from vfm_ops.curate.representatives import preference_order, representatives
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import jpeg_luma
from vfm_ops.media.limits import Limits
from vfm_ops.media.phash import dihedral_phashes

Batches = Iterable[tuple[np.ndarray, ...]]
Facts = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def drop_exact(pool: Pool) -> None:
    """Drops items whose stored picture has the same bytes as another's.

    Equal bytes have equal hashes and sizes, so only pictures that agree in these are read.
    """
    rows = np.flatnonzero(pool.alive | pool.standing)
    keys = np.stack(
        [pool.items.hash[rows], pool.items.width[rows].astype(np.uint64), pool.items.height[rows].astype(np.uint64)]
    )
    _, group_R, size = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    group_R = group_R.reshape(-1)
    fresh = np.bincount(group_R, weights=pool.alive[rows], minlength=len(size)) > 0
    alike = np.flatnonzero((size > 1)[group_R] & fresh[group_R])
    digests = [
        hashlib.blake2b(jpeg, digest_size=16).digest() if jpeg is not None else f"none {item}"
        for item, jpeg in pool.jpegs(rows[alike])
    ]
    same = rows[alike]
    kept = keep_one(exact_groups(digests), _preference(pool, same))
    _settle(pool, "exact_duplicate", same, kept)


def drop_perceptual(pool: Pool) -> None:
    """Drops items whose perceptual hash is within the radius of another's; of turned and flipped ones too, on request."""
    settings = pool.recipe.deduplicate.perceptual
    if settings is None:
        return
    rows = np.flatnonzero((pool.alive | pool.standing) & pool.items.hashed)
    fresh, standing = np.flatnonzero(pool.alive[rows]), np.flatnonzero(pool.standing[rows])
    plain = pool.items.hash[rows]
    views = _dihedral(pool, rows[fresh]) if settings.dihedral else plain[fresh][:, None]

    def pairs() -> Iterator[tuple[np.ndarray, ...]]:
        for found in hash_pairs(views if settings.dihedral else views[:, 0], settings.radius):
            yield fresh[found.i], fresh[found.j], -found.distance.astype(np.float32)
        if len(standing):
            matched = match_hashes(plain[standing], views, settings.radius)
            yield standing[matched.i], fresh[matched.j], -matched.distance.astype(np.float32)

    views_of = np.full(len(rows), -1)
    views_of[fresh] = np.arange(len(fresh))

    def distance(dropped: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
        bits = hamming(views[views_of[dropped]], plain[kept][:, None]).min(axis=1)
        again = views_of[kept] >= 0  # a pair may have been found from either side
        bits[again] = np.minimum(
            bits[again], hamming(views[views_of[kept[again]]], plain[dropped[again]][:, None]).min(axis=1)
        )
        return {"distance": bits}

    looks = Looks(pool, rows, colours=True, turned=settings.dihedral)
    _drop(pool, "perceptual_duplicate", rows, pairs(), distance, looks)


def _dihedral(pool: Pool, items: np.ndarray) -> np.ndarray:
    """Hashes of the eight views of each item, uint64 (M, 8); a picture that is gone has its stored hash eight times."""

    def views(pair: tuple[int, bytes | None]) -> np.ndarray:
        item, jpeg = pair
        try:
            if jpeg is not None:
                return dihedral_phashes(jpeg_luma(jpeg, Limits(), pool.items.name(item)))
        except MediaError:
            return np.full(8, pool.items.hash[item])
        return np.full(8, pool.items.hash[item])

    with ThreadPoolExecutor(available_cores()) as threads:
        return np.array(list(threads.map(views, pool.jpegs(items))), np.uint64).reshape(-1, 8)


def drop_semantic(pool: Pool) -> None:
    """Drops neighbours in embedding space: items whose cosine to one that stays is above the threshold."""
    settings = pool.recipe.deduplicate.semantic
    if settings is None:
        return
    rows, pairs = _semantic_rows(pool, settings.cosine)
    _drop(pool, "semantic_duplicate", rows, pairs, _cosine_of(pool, rows), Looks(pool, rows))


def _cosine_of(pool: Pool, rows: np.ndarray) -> Facts:
    return lambda dropped, kept: {"cosine": cosines(pool, rows[dropped], rows[kept])}


def _semantic_rows(pool: Pool, cosine: float) -> tuple[np.ndarray, Batches]:
    """Items compared, and the pairs among them (as places in that list) with a cosine above the threshold."""
    if pool.standing.any():
        return new_pairs(pool, cosine)
    rows = np.flatnonzero(pool.alive)
    return rows, semantic_pairs(pool.vectors(rows), cosine, neighbour_options(pool)) if len(rows) > 1 else []


def drop_aligned(pool: Pool) -> None:
    """Drops pictures that are one picture after alignment: crops, small turns, flips, overlays, re-encodings."""
    settings = pool.recipe.deduplicate.aligned
    if settings is None:
        return
    rows = np.flatnonzero(pool.alive)
    if pool.standing.any():
        near, candidates = new_pairs(pool, settings.candidate_cosine)
        touched = [near[i] for pair in candidates for i in pair[:2]]
        rows = np.union1d(rows, np.concatenate(touched)) if touched else rows
    if len(rows) < 2:
        return
    pairs = image_duplicates(
        lambda row: pool.picture(int(rows[row])),
        pool.vectors(rows).all(),
        candidate_cosine=settings.candidate_cosine,
        per_item=settings.per_item,
        options=neighbour_options(pool),
    )
    _drop(pool, "semantic_duplicate", rows, [pairs], _cosine_of(pool, rows))


def neighbour_options(pool: Pool) -> NeighbourOptions:
    """How neighbours are searched under the recipe."""
    resources = pool.recipe.resources
    return NeighbourOptions(seed=pool.recipe.seed, workers=resources.workers, device=resources.device)


def cosines(pool: Pool, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of items, float32, some thousands at a time."""
    out = np.zeros(len(a), np.float32)
    for low in range(0, len(a), 65536):
        part = slice(low, low + 65536)
        rows, place = np.unique(np.concatenate([a[part], b[part]]), return_inverse=True)
        x_RD = normalised(pool.vectors(rows).take(np.arange(len(rows))))
        left, right = np.split(place, 2)
        out[part] = np.einsum("pd,pd->p", x_RD[left], x_RD[right])
    return out


def _drop(
    pool: Pool, kind: str, rows: np.ndarray, pairs: Batches, facts: Facts | None = None, looks: Looks | None = None
) -> None:
    """Settles the rows that are fresh and near one that stays. pairs: places in rows, and how near; looks: a second opinion."""
    kept = representatives(
        pairs,
        preference_order(len(rows), _preference(pool, rows)),
        confirm=looks.agree if looks else None,
        prepare=looks.prepare if looks else None,
        fixed_N=~pool.alive[rows],
    )
    _settle(pool, kind, rows, kept, facts)


def _preference(pool: Pool, rows: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Who stays: an item that stood before, then as the recipe says."""
    keep = [(column[rows], way) for column, way in pool.items.preference(pool.recipe.deduplicate.keep)]
    return [(pool.standing[rows].astype(np.float64), "max"), *keep]


def _settle(pool: Pool, kind: str, rows: np.ndarray, kept: np.ndarray, facts: Facts | None = None) -> None:
    """Drops the fresh rows that do not name themselves. kept: places in rows."""
    dropped = np.flatnonzero((kept != np.arange(len(rows))) & pool.alive[rows])
    if not len(dropped):
        return
    np.add.at(pool.stands_for, rows[kept[dropped]], 1)
    more = facts(dropped, kept[dropped]) if facts else {}
    pool.decisions.settle(kind, rows[dropped], other=rows[kept[dropped]], **more)
