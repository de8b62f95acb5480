"""Runs every case on shards in gloo processes and reports how far value and gradients are from one global batch."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.vfm_ops.pretrain.losses.cases import CASES, GATHERS, GLOBAL_BATCH, global_batch, value_and_gradients
from vfm_ops.pretrain.losses import collective, siglip


class PeakMemory(TorchDispatchMode):
    """Largest number of elements alive at once in tensors made under this mode that have at least `smallest` elements."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest, self.alive, self.peak = smallest, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.smallest:
                key = tensor.untyped_storage().data_ptr()
                self.alive[key] = tensor.untyped_storage().nbytes() // tensor.element_size()
                weakref.finalize(tensor, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp(min=1e-12)) if want.norm() > 0 else float(got.norm())


def _errors(case: str, want: tuple[float, dict[str, Tensor]], shard: dict[str, Tensor]) -> dict[str, float]:
    loss, grads = value_and_gradients(case, shard)
    mean_loss = float(collective.all_reduce_detached(torch.tensor(loss, dtype=torch.float64), "mean"))
    errors = {"value": abs(mean_loss - want[0]) / abs(want[0])}
    return errors | {n: _relative(collective.all_reduce_detached(g, "mean"), want[1][n]) for n, g in grads.items()}


def _siglip_logit_elements(exchange: str, batch: int = 32, width: int = 2) -> int:
    image, text = (torch.nn.functional.normalize(torch.randn(batch, width), dim=-1).requires_grad_() for _ in range(2))
    scale, bias = torch.tensor(1.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    with PeakMemory(smallest=batch * 8) as memory:
        siglip.siglip_loss(image, text, scale, bias, exchange, chunk=8).backward()
    return memory.peak


def measure(rank: int, world: int, folder: str) -> None:
    """Entry point of one process; rank 0 writes errors-W.json: {case: {parameter: relative error}}, and the planted ones."""
    torch.set_num_threads(1)
    want = {case: value_and_gradients(case, global_batch()) for case in CASES}
    init = (Path(folder) / f"rendezvous-{world}").as_uri()
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
    share = GLOBAL_BATCH // world
    shard = {name: x[rank * share : (rank + 1) * share] for name, x in global_batch().items()}
    report = {"exact": {case: _errors(case, want[case], shard) for case in CASES}, "planted": {}, "logits": {}}
    for case, module in GATHERS.items():
        faithful, module.all_gather_with_grad = module.all_gather_with_grad, collective.all_gather_detached
        report["planted"][case] = _errors(case, want[case], shard)
        module.all_gather_with_grad = faithful
    for exchange in ("ring", "gather"):
        report["logits"][exchange] = _siglip_logit_elements(exchange)
    if rank == 0:
        (Path(folder) / f"errors-{world}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
