"""Video segmentation: region similarity J and boundary accuracy F of DAVIS (Perazzi et al., CVPR 2016).

Frames are read one at a time, so a long video costs no memory. TrackEval has the same measures, for whole sequences in
memory; it serves as oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np

from vfm_ops.errors import UsageError

# Boundary pixels match within 0.8 % of the frame's diagonal (Perazzi et al., and their evaluation code).
BOUNDARY_TOLERANCE = 0.008

Masks = Mapping[Any, Any]


def j_and_f(ground_truth: Iterable[Masks], predictions: Iterable[Masks]) -> dict[str, Any]:
    """Mean J, mean F and their mean over objects, each object averaged over its frames (DAVIS, semi-supervised).

    One mapping a frame: object id -> mask, a bool or uint8 array (H, W) or a COCO RLE. Predictions carry the ids of the
    ground truth; an object missing on a frame is an empty mask, and where both are empty J and F are 1. Ids that the
    ground truth never has are ignored. Every object counts on every frame. Returns J, F, J&F, and `per_object`.
    """
    region: dict[Any, list[float]] = {}
    boundary: dict[Any, list[float]] = {}
    seen_early: dict[Any, set[int]] = {}
    for t, (truth, found) in enumerate(zip_longest(ground_truth, predictions)):
        if truth is None or found is None:
            raise UsageError(f"ground truth and predictions differ in length: one of them ends after {t} frames")
        for key in truth:
            # On the frames before an object enters, its prediction was right to be empty.
            early = [0.0 if k in seen_early.get(key, ()) else 1.0 for k in range(t)]
            region.setdefault(key, list(early))
            boundary.setdefault(key, early)
        for key in region:
            j, f = _one_frame(truth.get(key), found.get(key))
            region[key].append(j)
            boundary[key].append(f)
        for key in found.keys() - region.keys():
            if as_mask(found[key]).any():
                seen_early.setdefault(key, set()).add(t)
    if not region:
        raise UsageError("the ground truth has no object: J and F are not defined")
    per_object = {k: {"J": float(np.mean(region[k])), "F": float(np.mean(boundary[k]))} for k in region}
    j, f = (float(np.mean([o[m] for o in per_object.values()])) for m in ("J", "F"))
    return {"J": j, "F": f, "J&F": (j + f) / 2, "per_object": per_object}


def _one_frame(truth: Any, found: Any) -> tuple[float, float]:
    if truth is None and found is None:
        return 1.0, 1.0
    a, b = (None if m is None else as_mask(m) for m in (truth, found))
    a = np.zeros_like(b) if a is None else a
    b = np.zeros_like(a) if b is None else b
    if a.shape != b.shape:
        raise UsageError(f"a ground-truth mask has shape {a.shape}, its prediction {b.shape}")
    return region_similarity(a, b), boundary_accuracy(a, b)


def as_mask(mask: Any) -> np.ndarray:
    """Bool (H, W) from an array, or from a COCO RLE (size, counts as text, bytes or a list)."""
    if isinstance(mask, Mapping):
        from pycocotools import mask as rle

        height, width = mask["size"]
        if isinstance(mask["counts"], list):
            mask = rle.frPyObjects({"size": [height, width], "counts": mask["counts"]}, height, width)
        return rle.decode({"size": [int(height), int(width)], "counts": mask["counts"]}).astype(bool)
    array = np.asarray(mask)
    if array.ndim != 2:
        raise UsageError(f"a mask has shape {array.shape}: give (height, width)")
    return array.astype(bool)


def region_similarity(truth: np.ndarray, found: np.ndarray) -> float:
    """J: intersection over union of two bool masks (H, W); 1 when both are empty."""
    union = np.count_nonzero(truth | found)
    return np.count_nonzero(truth & found) / union if union else 1.0


def boundary_accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    """F: harmonic mean of the boundaries' precision and recall, matched within a disc of 0.8 % of the diagonal.

    Dilation with the disc replaces the bipartite matching, as in the DAVIS evaluation.
    """
    edge_t, edge_f = boundary_pixels(truth), boundary_pixels(found)
    count_t, count_f = np.count_nonzero(edge_t), np.count_nonzero(edge_f)
    if not count_t and not count_f:
        return 1.0
    if not count_t or not count_f:
        return 0.0
    radius = int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*truth.shape)))
    span = np.arange(-radius, radius + 1)
    disc = (span[:, None] ** 2 + span**2 <= radius**2).astype(np.uint8)
    precision = np.count_nonzero(edge_f & (cv2.dilate(edge_t.astype(np.uint8), disc) > 0)) / count_f
    recall = np.count_nonzero(edge_t & (cv2.dilate(edge_f.astype(np.uint8), disc) > 0)) / count_t
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_pixels(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): pixels that differ from their right, lower, or lower right neighbour; one pixel wide."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    edge[-1, -1] = False
    return edge
