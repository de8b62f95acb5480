"""Chains over steps: what an item was dropped for may be dropped by a later step, for something it is not near to itself.

After the last step such an item is compared with what stands in the end. Where it is near, it is that item's duplicate;
else it is decided anew, as the first of those that were dropped with it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pipelines.curation.duplicates import cosines
from pipelines.curation.looks import Looks
from pipelines.curation.pool import Pool
from vfm_ops.curate.hashing import hamming, telling
from vfm_ops.curate.representatives import preference_order
from vfm_ops.curate.verify import COPY_SCORE, same_picture_score, small_picture

_KINDS = ("exact_duplicate", "perceptual_duplicate", "semantic_duplicate")
_SIBLINGS = 16
"""Released items of one group that a further one is compared with."""


def settle_chains(pool: Pool) -> None:
    """Gives every duplicate something to stand for it that stays, or another chance."""
    other_N = _others(pool)
    gone = np.flatnonzero(other_N >= 0)
    orphans = gone[~pool.decisions.alive[other_N[gone]]]
    if len(orphans):
        was_for = other_N[orphans]
        # What went last first: of a chain, its later links, which the earlier ones may then stay with.
        step = pool.decisions.number[was_for]
        keep = pool.items.preference(pool.recipe.deduplicate.keep)
        place = preference_order(len(orphans), [(column[orphans], way) for column, way in keep])
        order = np.lexsort([place, was_for, -step])
        end_of = _ends(pool, other_N, orphans)
        pool.decisions.release(orphans)
        _decide(pool, orphans[order], was_for[order], end_of[order])
        other_N = _others(pool)
    pool.stands_for = np.bincount(other_N[other_N >= 0], minlength=len(pool.items))


def _others(pool: Pool) -> np.ndarray:
    """Which item each fresh duplicate was dropped for, -1 for all others: int64 (N,)."""
    other_N = np.full(len(pool.items), -1)
    for number, decision in enumerate(pool.decisions.made):
        if decision.kind in _KINDS:
            still = pool.decisions.number[decision.items] == number
            other_N[decision.items[still]] = np.asarray(decision.facts["other"])[still]
    return other_N


def _ends(pool: Pool, other_N: np.ndarray, orphans: np.ndarray) -> np.ndarray:
    """What stands at the end of each orphan's chain; -1 where that is no item, as for frames of a video's copy."""
    end = other_N[orphans]
    while len(moving := np.flatnonzero((end >= 0) & ~pool.decisions.alive[end])):
        end[moving] = other_N[end[moving]]
    return end


def _decide(pool: Pool, orphans: np.ndarray, was_for: np.ndarray, end_of: np.ndarray) -> None:
    """Drops each orphan for what it was dropped for, where that stays after all, for its chain's end, or for a better orphan of
    its group that stays; the others stay themselves."""
    direct = end_of >= 0
    near = _Near(pool, orphans[direct], end_of[direct])
    cuts = np.flatnonzero(np.diff(was_for, prepend=-1, append=-1))
    for low, high in pairwise(cuts.tolist()):
        stays: list[int] = [int(i) for i in (was_for[low], end_of[low]) if i >= 0 and pool.decisions.alive[i]]
        for item in orphans[low:high].tolist():
            if not any(near.settle(item, candidate) for candidate in stays[:_SIBLINGS]):
                stays.append(item)


class _Near:
    """Whether two items are near by any measure of the recipe. The cosines of known pairs are had at once."""

    def __init__(self, pool: Pool, items: np.ndarray, others: np.ndarray) -> None:
        self.pool, self.settings = pool, pool.recipe.deduplicate
        able = pool.has_vector[items] & pool.has_vector[others]
        self._cosine: dict[tuple[int, int], float] = {}
        if self.settings.semantic or self.settings.aligned:
            pairs = zip(items[able].tolist(), others[able].tolist(), strict=True)
            self._cosine = dict(zip(pairs, cosines(pool, items[able], others[able]).tolist(), strict=True))
        everything = np.arange(len(pool.items))
        self._seen, self._colours = Looks(pool, everything), Looks(pool, everything, colours=True)

    def settle(self, item: int, other: int) -> bool:
        """Drops the item for the other where they are near, for the first step's reason that holds."""
        hashes, hashed = self.pool.items.hash, self.pool.items.hashed
        perceptual, semantic, aligned = self.settings.perceptual, self.settings.semantic, self.settings.aligned
        bits = int(hamming(hashes[[item]], hashes[[other]])[0])
        known = bool(hashed[item] and hashed[other] and telling(hashes[item]) and telling(hashes[other]))
        if perceptual and known and bits <= perceptual.radius and self._colours.agree(item, other):
            self._drop("perceptual_duplicate", item, other, distance=bits)
            return True
        self._seen.prepare(np.array([item, other]))
        if not (semantic or aligned) or not (self.pool.has_vector[item] and self.pool.has_vector[other]):
            return False
        cosine = self._cosine.get((item, other))
        cosine = float(cosines(self.pool, np.array([item]), np.array([other]))[0]) if cosine is None else cosine
        if (semantic and cosine >= semantic.cosine and self._seen.agree(item, other)) or (
            aligned and cosine >= aligned.candidate_cosine and self._is_aligned(item, other)
        ):
            self._drop("semantic_duplicate", item, other, cosine=cosine)
            return True
        return False

    def _is_aligned(self, item: int, other: int) -> bool:
        a, b = (small_picture(self.pool.picture(i)) for i in (item, other))
        return same_picture_score(a, b) >= COPY_SCORE

    def _drop(self, kind: str, item: int, other: int, **fact: float) -> None:
        facts = {name: np.array([value]) for name, value in fact.items()}
        self.pool.decisions.settle(kind, np.array([item]), other=np.array([other]), **facts)
