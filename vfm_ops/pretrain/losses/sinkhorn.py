"""Sinkhorn-Knopp targets: balanced assignment of samples to prototypes. Caron et al. 2020 (SwAV), appendix A; DINOv2."""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_reduce_detached
from vfm_ops.pretrain.losses.precision import widen


@torch.no_grad()
def sinkhorn(teacher_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """exp(logits / T), scaled in turn so that prototypes share the mass equally and each sample's row sums to 1.

    teacher_BK: this rank's logits; the prototypes' masses are summed over ranks, whose batches may differ in size, 0
    included. Works on logarithms: exp(logits / 0.04) itself overflows float32 for logits above 3.5.
    Returns probabilities of the shape of the input, float32 or wider.
    """
    log_q_BK = widen(teacher_BK) / temperature
    for _ in range(iterations):
        log_q_BK = log_q_BK - _logsumexp_over_ranks(log_q_BK)
        log_q_BK = log_q_BK - log_q_BK.logsumexp(dim=1, keepdim=True)
    return log_q_BK.exp()


def _logsumexp_over_ranks(x_BK: Tensor) -> Tensor:
    """log of the sum of exp over the rows of all ranks, (1, K). One rank reduces nothing over the network."""
    lowest = torch.finfo(x_BK.dtype).min
    local_1K = x_BK.amax(0, keepdim=True) if len(x_BK) else x_BK.new_full((1, x_BK.shape[1]), lowest)
    top_1K = all_reduce_detached(local_1K, "max")
    return all_reduce_detached((x_BK - top_1K).exp().sum(0, keepdim=True)).log() + top_1K
