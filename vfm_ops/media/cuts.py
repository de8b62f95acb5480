"""What every shot detector answers with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """A cut after frame `frame`: the next shot starts at frame + 1. score: the detector's, in [0, 1]."""

    frame: int
    score: float
