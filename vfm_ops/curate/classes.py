"""Retrieval by classes: as many rows of each class of a curated seed set, however rare it is in the data.

The nearest neighbours of seeds are mostly of frequent classes, as those lie near every seed; a discriminant between the seeds'
classes does not care how often a class comes. Legend: S seeds, D dimensions, C classes, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vfm_ops.curate.blocks import Block, BlockStep, MapBlocks, check_vectors, run_step
from vfm_ops.curate.kernels import normalised
from vfm_ops.curate.retrieval import check_same_space
from vfm_ops.errors import UsageError

SHRINKAGE = 0.3


class Discriminant(NamedTuple):
    """Logits of a unit vector x are x @ weight_DC + bias_C."""

    weight_DC: np.ndarray
    bias_C: np.ndarray


class Classified(NamedTuple):
    """For each row its most likely class, int64 (N,), and by how much its logit exceeds the next one's, float32 (N,)."""

    class_N: np.ndarray
    margin_N: np.ndarray


def fit_discriminant(seed_SD: np.ndarray, class_S: np.ndarray, shrinkage: float = SHRINKAGE) -> Discriminant:
    """Linear discriminant analysis of unit vectors, classes equally likely, their covariance shrunk (Friedman 1989).

    class_S: 0 ... C - 1, none of them empty. Raises UsageError for fewer than two classes.
    """
    check_vectors(seed_SD, "cosine")
    if class_S.max(initial=0) < 1:
        raise UsageError("retrieval by classes needs seeds of two classes or more")
    x_SD = normalised(seed_SD).astype(np.float64)
    mean_CD = np.stack([x_SD[class_S == c].mean(axis=0) for c in range(class_S.max() + 1)])
    rest_SD = x_SD - mean_CD[class_S]
    covariance_DD = rest_SD.T @ rest_SD / len(rest_SD)
    size = max(float(np.trace(covariance_DD)) / len(covariance_DD), 1e-6)
    covariance_DD = (1 - shrinkage) * covariance_DD + shrinkage * size * np.eye(len(covariance_DD))
    weight_DC = np.linalg.solve(covariance_DD, mean_CD.T)
    return Discriminant(weight_DC.astype(np.float32), (-0.5 * (mean_CD.T * weight_DC).sum(axis=0)).astype(np.float32))


def _classify(block: Block, discriminant: Discriminant) -> list[Any]:
    x_ND = normalised(block.x_ND)
    check_same_space("the seed set", len(discriminant.weight_DC), x_ND.shape[1])
    logit_NC = x_ND @ discriminant.weight_DC + discriminant.bias_C
    top_N2 = np.partition(logit_NC, -2, axis=1)[:, -2:]
    return [(block.start, logit_NC.argmax(axis=1), top_N2[:, 1] - top_N2[:, 0])]


CLASSIFY = BlockStep(_classify, lambda a, b: a + b)


def classify(map_blocks: MapBlocks, discriminant: Discriminant, known: Mapping[int, int]) -> Classified:
    """The class of every row, over all blocks. Raises UsageError when dimensions differ.

    known: class of the rows that are seeds themselves; no margin is larger than theirs.
    """
    parts = sorted(run_step(map_blocks, CLASSIFY, discriminant) or [], key=lambda part: part[0])
    none = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    found = Classified(
        np.concatenate([label for _, label, _ in parts] or none[0]),
        np.concatenate([margin for _, _, margin in parts] or none[1]),
    )
    rows = list(known)
    found.class_N[rows], found.margin_N[rows] = list(known.values()), np.inf
    return found


def balanced_rows(found: Classified, total: int) -> np.ndarray:
    """`total` rows, sorted: the clearest of each class in turns, so that no class has more than another that has any left."""
    order = np.lexsort((-found.margin_N, found.class_N))
    label = found.class_N[order]
    turn = np.arange(len(order)) - np.searchsorted(label, label, side="left")
    return np.sort(order[np.lexsort((-found.margin_N[order], turn))[:total]])
