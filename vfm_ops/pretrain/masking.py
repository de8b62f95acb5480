"""Patch masks, made by the CPU workers: uniform (MAE), blockwise (BEiT), and per-image ratio (iBOT). numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class MaskPlan:
    """How to mask a grid of patches.

    kind: `uniform` masks exactly round(ratio * L) patches anywhere; `blockwise` exactly `count` in rectangles (BEiT,
    algorithm 1); `ibot` masks a blockwise share drawn from ratio_range with `probability`, else nothing.
    views: masks per sample (the global crops of DINOv2). min_block: smallest block, aspect: of blocks, symmetric in log.
    """

    name: str = "mask"
    grid: tuple[int, int] = (14, 14)
    kind: Literal["uniform", "blockwise", "ibot"] = "uniform"
    ratio: float = 0.75
    count: int = 75
    min_block: int = 16
    aspect: float = 0.3
    ratio_range: tuple[float, float] = (0.1, 0.5)
    probability: float = 0.5
    views: int = 1

    def __post_init__(self) -> None:
        patches = self.grid[0] * self.grid[1]
        if self.kind == "blockwise" and not 0 < self.count < patches:
            raise UsageError(
                f"mask count {self.count} must lie between 1 and {patches - 1}, the patches of a {self.grid} grid"
            )
        if self.kind == "uniform" and not 0 < round(self.ratio * patches) < patches:
            raise UsageError(f"mask ratio {self.ratio} masks all or none of {patches} patches; MAE's is 0.75")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """bool (views, L), True where masked; without the first dimension when views is 1."""
        masks = np.stack([self._one(rng) for _ in range(self.views)])
        return masks[0] if self.views == 1 else masks

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        patches = self.grid[0] * self.grid[1]
        if self.kind == "uniform":
            mask = np.zeros(patches, bool)
            mask[rng.permutation(patches)[: round(self.ratio * patches)]] = True
            return mask
        if self.kind == "blockwise":
            return blockwise_mask(rng, self.grid, self.count, self.min_block, self.aspect).ravel()
        if rng.random() >= self.probability:
            return np.zeros(patches, bool)
        count = max(1, round(rng.uniform(*self.ratio_range) * patches))
        return blockwise_mask(rng, self.grid, count, min(self.min_block, count), self.aspect).ravel()


def blockwise_mask(
    rng: np.random.Generator, grid: tuple[int, int], count: int, min_block: int = 16, aspect: float = 0.3
) -> np.ndarray:
    """BEiT's algorithm 1: rectangles of at least min_block patches and aspect ratio in [aspect, 1 / aspect] until exactly
    `count` patches of the grid (rows, columns) are masked; the last rectangle is thinned at random to hit it.

    Returns bool (rows, columns). When what is left to mask is less than min_block, blocks of that remainder are allowed.
    """
    rows, columns = grid
    mask = np.zeros(grid, bool)
    while (left := count - int(mask.sum())) > 0:
        area = rng.uniform(min(min_block, left), max(left, min_block))
        ratio = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
        height = min(rows, max(1, round(math.sqrt(area * ratio))))
        width = min(columns, max(1, round(math.sqrt(area / ratio))))
        top, start = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        block = np.zeros(grid, bool)
        block[top : top + height, start : start + width] = True
        fresh = np.flatnonzero(block & ~mask)
        if len(fresh) > left:
            fresh = rng.permutation(fresh)[:left]
        mask.ravel()[fresh] = True
    return mask
