"""Collectives that the losses need: gathers and sums that carry gradient, and a ring shift. All are identities alone.

The backward of a gather sums what every rank's loss says about my slice; without that sum the gradient is 1/W of the
true one (global loss), or points elsewhere (local loss), while the loss looks right in every log.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks in the default process group, 1 when there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 when there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def all_gather_with_grad(local_BD: Tensor) -> Tensor:
    """(B, ...) on each rank -> (W * B, ...) in rank order; the gradients of all ranks flow back. B must be equal on all."""
    return _AllGather.apply(local_BD) if world_size() > 1 else local_BD


def all_reduce_sum_with_grad(local: Tensor) -> Tensor:
    """Sum over ranks of a tensor of any shape, with gradient."""
    return _AllReduceSum.apply(local) if world_size() > 1 else local


@torch.no_grad()
def all_gather_detached(local_BD: Tensor) -> Tensor:
    """(B, ...) -> (W * B, ...) in rank order, no gradient: for targets (momentum keys, teacher outputs)."""
    if world_size() == 1:
        return local_BD.detach()
    parts = [torch.empty_like(local_BD) for _ in range(world_size())]
    dist.all_gather(parts, local_BD.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def all_reduce_detached(local: Tensor, op: str = "sum") -> Tensor:
    """A reduced copy over ranks, no gradient. op: `sum`, `mean` or `max`."""
    total = local.detach().contiguous().clone()
    if world_size() == 1:
        return total
    dist.all_reduce(total, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    return total / world_size() if op == "mean" else total


@torch.no_grad()
def ring_shift(*tensors: Tensor) -> list[Tensor]:
    """Each rank hands its tensors to rank + 1 and receives those of rank - 1 (shapes equal on all ranks)."""
    world, me = world_size(), rank()
    if world == 1:
        return list(tensors)
    received = [torch.empty_like(t) for t in tensors]
    ops = [dist.P2POp(dist.isend, t.contiguous(), (me + 1) % world) for t in tensors]
    ops += [dist.P2POp(dist.irecv, r, (me - 1) % world) for r in received]
    for request in dist.batch_isend_irecv(ops):
        request.wait()
    return received
