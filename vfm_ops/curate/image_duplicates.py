"""Near-duplicate images: candidates by embedding, verified by aligning the pictures themselves.

An embedding alone can't tell two similar shirts from one shirt photographed once and saved twice; alignment can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from vfm_ops.curate.kmeans import available_cores
from vfm_ops.curate.neighbours import NeighbourOptions, Pairs, near_duplicate_pairs
from vfm_ops.curate.verify import COPY_SCORE, same_picture_score, small_picture
from vfm_ops.errors import UsageError


def strongest_pairs(pairs: Pairs, n: int, per_item: int) -> Pairs:
    """Pairs that are among the `per_item` most similar of at least one of their two items, by i, then j."""
    ends = np.concatenate([pairs.i, pairs.j])
    cosine = np.concatenate([pairs.cosine, pairs.cosine])
    pair = np.tile(np.arange(len(pairs.i)), 2)
    order = np.lexsort((pair, -cosine, ends))
    start = np.searchsorted(ends[order], np.arange(n))
    kept = np.unique(pair[order[np.arange(len(order)) - start[ends[order]] < per_item]])
    kept = kept[np.lexsort((pairs.j[kept], pairs.i[kept]))]
    return Pairs(pairs.i[kept], pairs.j[kept], pairs.cosine[kept])


def image_duplicates(
    images: Sequence[np.ndarray] | Callable[[int], np.ndarray],
    vectors_ND: np.ndarray,
    *,
    candidate_cosine: float = 0.6,
    per_item: int = 8,
    score: float = COPY_SCORE,
    options: NeighbourOptions | None = None,
) -> Pairs:
    """Verified pairs of near-duplicate images.

    images: uint8 RGB or gray, or a callable from row to image (read on demand, twice at most). vectors_ND: their
    embeddings. Candidates: cosine >= candidate_cosine and among the per_item nearest of either image. Raises UsageError
    when the numbers of images and vectors differ.
    """
    if not callable(images) and len(images) != len(vectors_ND):
        raise UsageError(f"there are {len(images)} images but {len(vectors_ND)} vectors: they must belong together")
    n = len(vectors_ND)
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    candidates = none
    for batch in near_duplicate_pairs(vectors_ND, candidate_cosine, options):
        # Thinned as they stream in: at a low threshold there are far more pairs than anyone wants to hold.
        joined = Pairs(*(np.concatenate(columns) for columns in zip(candidates, batch, strict=True)))
        candidates = strongest_pairs(joined, n, per_item) if len(joined.i) > 4 * n * per_item else joined
    candidates = strongest_pairs(candidates, n, per_item)
    picture = images if callable(images) else images.__getitem__
    small = {int(row): small_picture(picture(int(row))) for row in np.unique(np.concatenate(candidates[:2]))}

    def agrees(pair: tuple[int, int]) -> bool:
        return same_picture_score(small[pair[0]], small[pair[1]]) >= score

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        # OpenCV lets go of the interpreter: pairs, not pixels, are what the cores share.
        with ThreadPoolExecutor((options and options.workers) or available_cores()) as threads:
            agree = list(threads.map(agrees, zip(candidates.i.tolist(), candidates.j.tolist(), strict=True)))
    finally:
        cv2.setNumThreads(before)
    keep = np.array(agree, bool)
    return Pairs(candidates.i[keep], candidates.j[keep], candidates.cosine[keep])
