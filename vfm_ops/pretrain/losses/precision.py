"""In which precision losses compute."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision logits over a temperature of 0.04 overflow or lose the ranking."""
    return x if x.dtype == torch.float64 else x.float()
