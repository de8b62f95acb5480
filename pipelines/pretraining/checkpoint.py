"""Checkpoints that any number of workers, sharded or not, can go on from.

    OUT/train/step-00000120/state.pt       Stepper.state_dict() with whole tensors: model, optimiser, step, alarm
    OUT/train/step-00000120/history.json   logs up to that step

Written by rank 0 to a local folder, uploaded by Ray Train in the background, kept as RunConfig says. The step is the
position in the data, and random numbers are drawn anew from (seed, step, rank), so nothing else is needed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.pretraining.history import History
from vfm_ops.errors import VfmError
from vfm_ops.pretrain.losses.collective import world_size
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.step import Stepper, regroup


def shard(objective: Objective, device: str) -> None:
    """FSDP2: shards each block, then the rest, over all ranks, in place; `encode` and `loss` gather what they use."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(torch.device(device).type, (world_size(),))
    scalars = {p for p in objective.parameters() if p.ndim == 0}  # logit scale and bias: FSDP2 takes no scalars
    for parameter in scalars:
        parameter.register_post_accumulate_grad_hook(_average_gradient)
    for name, module in objective.named_modules():
        if name.rpartition(".")[0].endswith("blocks") and isinstance(module, nn.Module):
            fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh, ignored_params=scalars)
    for method in ("encode", "loss"):
        register_fsdp_forward_method(objective, method)


def _average_gradient(parameter: Tensor) -> None:
    """Of a parameter that every rank holds whole. What earlier micro-batches left is equal on all ranks, and stays so."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def allow_mixed_parameters(optimizer: torch.optim.Optimizer) -> None:
    """One parameter at a time: torch's fused loops refuse sharded and whole tensors in one list."""
    for group in optimizer.param_groups:
        group["foreach"] = False


def full_state(stepper: Stepper) -> dict[str, Any]:
    """The stepper's state with every sharded tensor made whole, on the CPU. A collective: all ranks call it."""
    return _map_tensors(stepper.state_dict(), _whole)


def load_full_state(stepper: Stepper, state: dict[str, Any]) -> None:
    """Loads what `full_state` gave, into plain or sharded weights."""
    mine = stepper.objective.state_dict()
    model = {key: _like(value, mine[key]) if key in mine else value for key, value in state["model"].items()}
    parameters = [p for group in stepper.optimizer.param_groups for p in group["params"]]
    optimizer = dict(regroup(state["optimizer"], stepper.optimizer))  # first: what follows goes by position
    optimizer["state"] = {
        index: {k: _like(v, parameters[index]) for k, v in slots.items()} for index, slots in optimizer["state"].items()
    }
    groups = zip(optimizer["param_groups"], stepper.optimizer.param_groups)
    optimizer["param_groups"] = [{**saved, "foreach": now["foreach"]} for saved, now in groups]
    stepper.load_state_dict({**state, "model": model, "optimizer": optimizer})


def _map_tensors(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map_tensors(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(v, change) for v in value)
    return value


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()


def _like(value: Any, target: Tensor) -> Any:
    """A whole tensor, sharded as `target` is."""
    if not hasattr(target, "device_mesh") or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def average_batch_statistics(objective: Objective) -> None:
    """Means of all batch norms' running statistics over ranks, so that every rank, and the checkpoint, holds the same."""
    if world_size() == 1:
        return
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [m for m in objective.modules() if isinstance(m, kinds) and m.running_mean is not None]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if not buffers:
        return
    flat = torch.cat([b.flatten() for b in buffers])
    dist.all_reduce(flat)
    for buffer, part in zip(buffers, (flat / world_size()).split([b.numel() for b in buffers])):
        buffer.copy_(part.view_as(buffer))


def write_checkpoint(state: dict[str, Any], history: History) -> Path:
    """Into a new local folder, which Ray Train uploads and removes. VfmError when the disk is full."""
    folder = Path(tempfile.mkdtemp(prefix="vfm-checkpoint-"))
    try:
        torch.save(state, folder / "state.pt")
        history.save(folder / "history.json")
    except (OSError, RuntimeError) as error:  # torch reports a failed write of its zip stream as RuntimeError
        shutil.rmtree(folder, ignore_errors=True)  # what is there of it holds the space that is lacking
        raise VfmError(
            f"can't write a checkpoint of step {state['step']} to {folder}: {error}; the one before it is kept: free "
            "space, and give the same command again"
        ) from error
    return folder


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], History]:
    """State (whole tensors on the CPU) and logs."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return state, History.load(folder / "history.json")
