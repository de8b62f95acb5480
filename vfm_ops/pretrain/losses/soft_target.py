"""Cross-entropy with soft targets, mixup's and cutmix's labels. Szegedy et al. 2016 section 7 (smoothing)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits_BC: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """-mean sum_c t_c log softmax(logits)_c with t <- (1 - s) t + s / C.

    target: int64 (B,) class ids, or float (B, C) whose rows sum to 1. Returns a scalar, ln C when nothing is learnt.
    """
    classes = logits_BC.shape[-1]
    target_BC = target.to(logits_BC.dtype) if target.dim() == 2 else F.one_hot(target, classes).to(logits_BC.dtype)
    target_BC = target_BC * (1 - smoothing) + smoothing / classes
    return -(target_BC * F.log_softmax(logits_BC, dim=-1)).sum(-1).mean()
