"""Schedules as functions of the step: cosine with linear warm-up, and the teacher temperature's linear warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Linear from `warmup_start` to `start` over `warmup` steps, then half a cosine from `start` to `end` at `total`.

    SGDR's cosine without restarts (Loshchilov and Hutter 2017, eq. 5). Serves lr (start > end), weight decay and the
    EMA momentum (start < end). After `total` it stays at `end`.
    """

    start: float
    end: float
    total: int
    warmup: int = 0
    warmup_start: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.warmup_start + (self.start - self.warmup_start) * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Warmup:
    """Linear from `start` to `end` over `steps`, then constant: DINO's teacher temperature."""

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.end if step >= self.steps else self.start + (self.end - self.start) * step / self.steps
