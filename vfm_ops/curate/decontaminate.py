"""Decontamination: data that nearly equals an item of an evaluation set would make its score a memory test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vfm_ops.curate.blocks import MapBlocks, Source, local_map, survey
from vfm_ops.curate.hashing import match_hashes
from vfm_ops.curate.retrieval import check_same_space, rows_within
from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class EvaluationSet:
    """Items that must not be trained on.

    embeddings: float (M, D). hashes: uint64 (M,) or (M, 8) dihedral. model_digest: of the embeddings' model.
    """

    name: str
    embeddings: np.ndarray | None = None
    hashes: np.ndarray | None = None
    model_digest: str | None = None


@dataclass(frozen=True)
class Contamination:
    """One data row to remove, and because of which evaluation item; cosine or distance is None where not compared."""

    row: int
    evaluation: str
    evaluation_row: int
    cosine: float | None
    distance: int | None


def find_contamination(
    evaluations: Sequence[EvaluationSet],
    *,
    source: Source | None = None,
    map_blocks: MapBlocks | None = None,
    hashes: np.ndarray | None = None,
    cosine: float = 0.95,
    radius: int = 6,
    model_digest: str | None = None,
) -> list[Contamination]:
    """Data rows that nearly equal an evaluation item, by cosine or by perceptual hash, each once with its worst match.

    source or map_blocks: the data's embeddings; hashes: the data's, uint64 (N,). An evaluation set is compared by
    whatever both sides have. Sorted by row. Raises UsageError when nothing can be compared, or spaces differ.
    """
    if map_blocks is None and source is not None:
        map_blocks = local_map(source)
    found: dict[int, Contamination] = {}
    dim = survey(map_blocks, "cosine").dim if map_blocks is not None else 0
    for evaluation in evaluations:
        by_vector = map_blocks is not None and evaluation.embeddings is not None
        by_hash = hashes is not None and evaluation.hashes is not None
        if not (by_vector or by_hash):
            raise UsageError(
                f"evaluation set {evaluation.name!r} can't be compared: give it and the data embeddings, or both hashes"
            )
        if map_blocks is not None and evaluation.embeddings is not None:
            what = f"evaluation set {evaluation.name!r}"
            check_same_space(what, evaluation.embeddings.shape[1], dim, evaluation.model_digest, model_digest)
            rows, items, scores = rows_within(map_blocks, evaluation.embeddings, cosine)
            for row, item, score in zip(rows.tolist(), items.tolist(), scores.tolist(), strict=True):
                _note(found, Contamination(row, evaluation.name, item, score, None))
        if hashes is not None and evaluation.hashes is not None:
            matched = match_hashes(hashes, evaluation.hashes, radius)
            for row, item, bits in zip(*(column.tolist() for column in matched), strict=True):
                _note(found, Contamination(row, evaluation.name, item, None, bits))
    return [found[row] for row in sorted(found)]


def _note(found: dict[int, Contamination], new: Contamination) -> None:
    """Keeps the nearest match of a row; a match by vector comes before one by hash."""
    old = found.get(new.row)
    if old is None or _nearness(new) > _nearness(old):
        found[new.row] = new


def _nearness(item: Contamination) -> tuple[float, float]:
    return (item.cosine if item.cosine is not None else -1.0, -(item.distance if item.distance is not None else 65))
