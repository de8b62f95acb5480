"""Runs every case on shards in gloo processes and reports how far value and gradients are from one global batch."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
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


STEPPED = {"simclr": {}, "moco": {"version": "v3"}, "clip": {}, "siglip": {}, "dinov2": {}, "dino": {}}


def _stepped(name: str, share: slice) -> dict[str, Tensor]:
    """State of a whole objective, in float64, after two steps on this share of each global batch."""
    from tests.vfm_ops.pretrain.tiny import build, samples, training  # timm and transformers: only where they are used
    from vfm_ops.pretrain.fit import make_batch
    from vfm_ops.pretrain.step import Stepper

    objective = build(name, **STEPPED[name]).double()
    config = training(name, optimizer="sgd", base_lr=0.1, clip_grad=1.0, warmup_epochs=0)
    stepper, plan = Stepper(objective, config, 24), objective.view_plan(objective.config)
    for step in range(2):
        batch = make_batch(plan, samples(), step, config, byte_tokens)
        stepper.step({key: value[share] for key, value in batch.items()})
    return {key: value.clone() for key, value in objective.state_dict().items() if value.is_floating_point()}


CLIPPED = {"siglip": "all", "dino": "parameter", "dinov2": "module"}


def _sharded(name: str) -> float:
    """How far clipped gradients, and the weights after two steps of LARS on them, are from the whole ones when parameters
    are sharded and scalars are not."""
    from timm.optim import Lars
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    from tests.vfm_ops.pretrain.tiny import build
    from vfm_ops.pretrain.step import clip_gradients, clip_groups

    whole, sharded = build(name), build(name)
    fully_shard(sharded, ignored_params={p for p in sharded.parameters() if p.ndim == 0})
    generator = torch.Generator().manual_seed(0)
    for own, split in zip(whole.parameters(), sharded.parameters()):
        if own.requires_grad:
            own.grad = torch.randn(own.shape, generator=generator)
            split.grad = own.grad.clone()
            if hasattr(split, "device_mesh"):
                split.grad = distribute_tensor(split.grad, split.device_mesh, split.placements)
    for objective in (whole, sharded):
        for parameters in clip_groups(objective, CLIPPED[name]):
            clip_gradients(parameters, 0.5)
        learning = [p for p in objective.parameters() if p.requires_grad]
        optimizer = Lars(learning, lr=4.8, momentum=0.9, weight_decay=1e-6, foreach=False)
        optimizer.step()
        optimizer.step()
    made = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in sharded.parameters()]
    return max(float((a - b).detach().abs().max()) for a, b in zip(made, whole.parameters()))


def byte_tokens(text: str, length: int) -> np.ndarray:
    """The same ids in every process, which a trained tokenizer does not promise."""
    return np.array([2, *[4 + ord(c) % 60 for c in text.ljust(length)[-length + 2 :]], 3], np.int64)


def _worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    return max(float((got[key] - want[key]).abs().max() / want[key].abs().max().clamp(min=1e-3)) for key in want)


def measure(rank: int, world: int, folder: str) -> None:
    """Entry point of one process; rank 0 writes errors-W.json: {case: {parameter: relative error}}, and the planted ones."""
    torch.set_num_threads(1)
    want = {case: value_and_gradients(case, global_batch()) for case in CASES}
    alone = {name: _stepped(name, slice(None)) for name in STEPPED} if world == 2 else {}
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
    mine = slice(rank * share, (rank + 1) * share)
    report["stepped"] = {name: _worst(_stepped(name, mine), alone[name]) for name in alone}
    report["sharded"] = {name: _sharded(name) for name in CLIPPED} if world == 2 else {}
    if rank == 0:
        (Path(folder) / f"errors-{world}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
