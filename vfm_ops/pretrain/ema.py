"""Momentum (teacher) networks: a copy that shares no storage with the student, and its update."""

from __future__ import annotations

import copy

import torch
from torch import nn


def momentum_copy(student: nn.Module) -> nn.Module:
    """A deep copy in eval mode that needs no gradient. An alias would follow the student at once and collapse the run."""
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    mine = {p.data_ptr() for p in student.parameters() if p.numel() and not p.is_meta}
    shared = [name for name, p in teacher.named_parameters() if p.numel() and p.data_ptr() in mine]
    if shared:
        raise RuntimeError(f"teacher shares storage with the student: {shared[0]}")
    return teacher


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- m * teacher + (1 - m) * student, in place; floating buffers too, so that a teacher in eval mode normalises
    with averaged statistics (Cai et al. 2021, EMAN) and no statistic of the batch leaks to it. Integer buffers are copied."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - momentum)
        else:
            mine.copy_(theirs)
