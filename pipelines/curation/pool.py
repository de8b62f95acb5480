"""What the steps of a curation share: the items, the decisions so far, their vectors, and what an earlier run decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipelines.curation.decisions import Decisions
from pipelines.curation.items import Items
from pipelines.curation.recipe import CurationRecipe
from pipelines.curation.vectors import Vectors
from pipelines.lake import Lake
from pipelines.search.columns import Column
from vfm_ops.curate.blocks import Block, BlockStep
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits

DUPLICATES = ("exact_duplicate", "perceptual_duplicate", "semantic_duplicate", "video_copy")
_BATCH = 256


@dataclass
class Pool:
    """N items on their way through the steps.

    base: the column's vectors, from which those of any items are had. fresh: items to be decided now; the others stay as an
    earlier run decided. standing: of those others, the ones that outlived deduplication: duplicates of them are dropped.
    label: finest cluster, -1 unknown. centroids: of the finest level of an earlier run. stands_for: duplicates dropped in an
    item's favour.
    sets: size of each outside set. seed_of: which seed, or class of seeds, retrieved an item, and its cosine or NaN.
    """

    lake: Lake
    recipe: CurationRecipe
    column: Column
    items: Items
    base: Vectors
    fresh: np.ndarray
    standing: np.ndarray
    label: np.ndarray
    decisions: Decisions
    centroids: np.ndarray | None = None
    stands_for: np.ndarray = field(init=False)
    has_vector: np.ndarray = field(init=False)
    sets: dict[str, int] = field(default_factory=dict)
    seed_of: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stands_for = np.zeros(len(self.items), np.int64)
        self.has_vector = np.ones(len(self.items), bool)

    @property
    def alive(self) -> np.ndarray:
        """Items to be decided that no step has dropped yet: bool (N,)."""
        return self.decisions.alive & self.fresh

    def vectors(self, items: np.ndarray) -> Vectors:
        """Vectors of sorted item numbers, rows in that order."""
        return self.base.only(self.items.position[items])

    def jpegs(self, items: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
        """(item, stored JPEG) of item numbers, some hundreds at a time."""
        for low in range(0, len(items), _BATCH):
            part = items[low : low + _BATCH]
            rows = self.lake.take("frames", self.items.row_id[part].tolist(), self.items.version, ["jpeg"])
            yield from zip(part.tolist(), rows["jpeg"].to_pylist())

    def picture(self, item: int) -> np.ndarray:
        """The stored picture of an item, RGB uint8. UsageError when it was not stored or can't be decoded."""
        [(_, jpeg)] = self.jpegs(np.array([item]))
        name = self.items.name(item)
        if jpeg is None:
            raise UsageError(
                f"frame {name} has no stored picture, which this step compares: process with jpeg.store=true"
            )
        try:
            return decode_image(jpeg, Limits(), name)
        except MediaError as e:
            raise UsageError(str(e).rstrip(".")) from e


def _usable(block: Block, broadcast: None) -> list[tuple[int, np.ndarray]]:
    x_ND = np.asarray(block.x_ND, np.float32)
    state_N = np.where(np.isfinite(x_ND).all(axis=1), np.where(x_ND.any(axis=1), 0, 2), 1).astype(np.int8)
    return [(block.start, state_N)]


USABLE = BlockStep(_usable, lambda a, b: a + b)
"""Per row: 0 usable, 1 NaN or infinite, 2 only zeros."""


def check_usable(pool: Pool) -> None:
    """Settles fresh items without a vector. A NaN or all-zero one is refused, or dropped where the recipe says so."""
    rows = np.flatnonzero(pool.fresh)
    if not len(rows):
        return
    parts = sorted((p for found in pool.vectors(rows).map_blocks(USABLE, None) for p in found), key=lambda p: p[0])
    state_R = np.concatenate([state for _, state in parts])
    missing_R = _missing(pool, rows, state_R)
    broken = np.flatnonzero((state_R > 0) & ~missing_R)
    if len(broken) and pool.recipe.bad_vectors == "refuse":
        what = "NaN or infinite values" if state_R[broken[0]] == 1 else "only zeros, which have no direction"
        raise UsageError(
            f"{len(broken)} of {len(rows)} vectors of {pool.column.name} are unusable; the first, of frame "
            f"{pool.items.name(rows[broken[0]])}, holds {what}: embed them again, or set bad_vectors=drop"
        )
    bad = rows[(state_R > 0) | missing_R]
    pool.has_vector[bad] = False
    if len(bad) == len(rows) and not pool.standing.any():
        command = f"vfm embed --lake {pool.lake.root} --model {pool.column.spec}"
        raise UsageError(f"no frame has a vector in {pool.column.name}: run {command} first")
    pool.decisions.settle("no_vector", bad)


def _missing(pool: Pool, rows: np.ndarray, state_R: np.ndarray) -> np.ndarray:
    """Rows whose vector was never written: bool (R,). Asks only where some vector is not finite, as a missing one reads."""
    if not (state_R == 1).any():
        return np.zeros(len(rows), bool)
    # Read-ahead as Lance has it by default holds hundreds of megabytes of vectors, of which only the validity is wanted.
    scanner = pool.lake.table("frames", pool.items.version).scanner(
        columns=[],
        filter=f"{pool.column.name} IS NULL",
        with_row_id=True,
        batch_size=8192,
        batch_readahead=1,
        fragment_readahead=1,
        io_buffer_size=32 << 20,
    )
    null = [batch["_rowid"].to_numpy() for batch in scanner.to_batches()]
    return np.isin(pool.items.row_id[rows], np.concatenate(null)) if null else np.zeros(len(rows), bool)
