"""DINO's cross-entropy between views, and the softmax centring of its targets. Caron et al. 2021, eqs. 1 to 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.losses.collective import all_reduce_detached
from vfm_ops.pretrain.losses.precision import widen


def dino_loss(
    student_SBK: Tensor, teacher_TBK: Tensor, temperature: float = 0.1, skip_same_view: bool = True
) -> Tensor:
    """Mean over (teacher view, student view) pairs and the batch of -sum_k p_teacher log softmax(student / T).

    student_SBK: logits of S views, of which the first T are the teacher's own views, in its order. teacher_TBK: target
    probabilities. skip_same_view drops pairs that show both networks the same crop (eq. 3). A uniform output on both sides
    gives exactly ln K: a plateau there is a collapse. UsageError for one view alone, which has no other to meet.
    """
    if skip_same_view and len(student_SBK) < 2:
        raise UsageError(
            "DINO's loss is between different views and there is one: give at least two crops of each image"
        )
    log_student_SBK = F.log_softmax(widen(student_SBK) / temperature, dim=-1)
    per_pair_TS = -torch.einsum("tbk,sbk->ts", teacher_TBK.detach().to(log_student_SBK.dtype), log_student_SBK)
    per_pair_TS = per_pair_TS / student_SBK.shape[1]
    if not skip_same_view:
        return per_pair_TS.mean()
    different_TS = ~torch.eye(*per_pair_TS.shape, dtype=torch.bool, device=per_pair_TS.device)
    return per_pair_TS[different_TS].mean()


class Centre(nn.Module):
    """Running mean of the teacher's logits, part of the state_dict (eq. 4). centre_1K starts at 0.

    `probabilities` uses the centre as it was before this batch; call `update` after the loss (the order matters: a centre
    that has already seen the batch is another method).
    """

    centre_1K: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre_1K", torch.zeros(1, prototypes))

    @torch.no_grad()
    def probabilities(self, teacher: Tensor, temperature: float) -> Tensor:
        """softmax((teacher - centre) / T) along the last dimension, float32 or wider."""
        return F.softmax((widen(teacher) - self.centre_1K) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, teacher: Tensor) -> None:
        """centre <- m * centre + (1 - m) * mean over all rows of all ranks. teacher: (..., K) logits; rows may differ in
        number between ranks (masked patches), so sums and counts are reduced, not means."""
        rows = teacher.detach().flatten(0, -2)
        total = all_reduce_detached(widen(rows).sum(0))
        count = all_reduce_detached(torch.tensor(float(len(rows)), device=rows.device))
        mean_1K = (total / count.clamp(min=1)).unsqueeze(0).to(self.centre_1K.dtype)
        self.centre_1K.mul_(self.momentum).add_(mean_1K, alpha=1 - self.momentum)
