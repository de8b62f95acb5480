"""One training step and everything it needs to be resumed exactly: the seam between an objective and any trainer.

A trainer (the in-memory `fit`, or one on Ray) only brings batches: `Stepper.step(batch)` takes this rank's share of global
step `stepper.step_index`. The state it returns is the same on every rank, save the random state.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.accumulate import backward_step
from vfm_ops.pretrain.backbones import set_grad_checkpointing
from vfm_ops.pretrain.losses.collective import all_reduce_detached, world_size
from vfm_ops.pretrain.monitor import CollapseAlarm, effective_rank, representative, spread
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.train_config import TrainConfig

# Of LARS: a layer moves by this share of its norm, times the learning rate.
TRUST_COEFFICIENT = 0.001


class TrainingDiverged(VfmError):
    """The loss is no number: the weights of the last good checkpoint are still good, these may not be."""


class CollapseStop(VfmError):
    """The collapse alarm went off and on_collapse is `stop`."""


class Stepper:
    """Objective, optimiser and schedules of one rank.

    samples: size of the training set. average_gradients: reduce gradients here, after accumulation (plain replicas); a
    caller that wraps the objective in DDP or FSDP itself turns it off.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        samples: int,
        device: str = "cpu",
        average_gradients: bool = True,
    ) -> None:
        share = config.batch_size // world_size()
        if config.batch_size % world_size() or share % config.accumulate:
            raise UsageError(
                f"batch_size {config.batch_size} is not divisible by {world_size()} ranks x {config.accumulate} micro-batches"
            )
        self.objective, self.config, self.samples = objective.to(device), config, samples
        self.device = torch.device(device)
        self.average_gradients = average_gradients
        self.lr, self.wd = config.lr_schedule(samples), config.wd_schedule(samples)
        self.total_steps = config.total_steps(samples)
        objective.prepare(self.total_steps, config.steps_per_epoch(samples), config.batch_size)
        if config.grad_checkpointing:
            set_grad_checkpointing(objective.backbone)
        self.optimizer = self._build_optimizer()
        self.alarm = CollapseAlarm(getattr(objective.config, "prototypes", 0))
        self.step_index = 0
        self.collapse_message: str | None = None  # the alarm's latest sentence

    def _build_optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        groups = self.objective.param_groups(c.layer_decay, c.patch_embed_lr_scale, c.no_decay)
        if c.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=c.sgd_momentum)
        if c.optimizer == "lars":
            from timm.optim import Lars

            for group in groups:  # what does not decay is not adapted either, whatever the weight decay is
                group["always_adapt"] = group["wd_scale"] > 0
            return Lars(groups, lr=1.0, momentum=c.sgd_momentum, trust_coeff=TRUST_COEFFICIENT)
        return torch.optim.AdamW(groups, lr=1.0, betas=c.betas, eps=c.eps)

    def step(self, batch: dict[str, np.ndarray] | dict[str, Tensor]) -> dict[str, float]:
        """One optimiser step on this rank's share of the batch. Returns loss, lr and the objective's logs as floats, means
        over ranks. Raises TrainingDiverged on a loss that is NaN or infinite, before the weights are touched."""
        tensors = {key: torch.as_tensor(value).to(self.device, non_blocking=True) for key, value in batch.items()}
        lr, wd = self.lr(self.step_index), self.wd(self.step_index)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr * group["lr_scale"], wd * group["wd_scale"]
        self.objective.train()
        self.objective.set_step(self.step_index)
        self.optimizer.zero_grad(set_to_none=True)
        outputs, features = backward_step(self.objective, tensors, self.config.accumulate, self._autocast)
        logs = self._reduced(outputs)
        if not np.isfinite(logs["loss"]):
            raise TrainingDiverged(
                f"the loss became {logs['loss']} at step {self.step_index} (lr {lr:.3g}): resume from the last checkpoint with "
                "a lower base_lr, more warm-up, or clip_grad"
            )
        self._update()
        logs |= {"lr": lr, "weight_decay": wd, "step": self.step_index}
        self._monitor(logs, features)
        self.step_index += 1
        return logs

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _reduced(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        keys = sorted(outputs)
        values = torch.stack([outputs[key].detach().float() for key in keys])
        return dict(zip(keys, all_reduce_detached(values, "mean").tolist()))

    def _update(self) -> None:
        if self.average_gradients and world_size() > 1:
            average_gradients(self.objective)
        if self.config.clip_grad:
            for parameters in clip_groups(self.objective, self.config.clip_by):
                clip_gradients(parameters, self.config.clip_grad)
        self.objective.after_backward()
        self.optimizer.step()
        self.objective.after_step()

    def _monitor(self, logs: dict[str, float], features: dict[str, Tensor]) -> None:
        if self.step_index % self.config.monitor_every:
            return
        x_BD = representative(features)
        if x_BD is not None and len(x_BD) > 1:
            logs |= {"effective_rank": effective_rank(x_BD[:512]), "spread": spread(x_BD)}
        # Layer scales of 1e-5 (DINOv2) give all images nearly the same class token until the warm-up has raised them, which
        # is no collapse: till then only targets are watched.
        warming = self.step_index < self.lr.warmup
        watched = {k: v for k, v in logs.items() if not warming or k not in ("effective_rank", "spread")}
        message = self.alarm.observe(watched)
        if message is None:
            return
        logs["collapse"] = 1.0  # logs are numbers; the sentence is in collapse_message
        self.collapse_message = message
        if self.config.on_collapse == "stop":
            raise CollapseStop(
                f"{self.objective.name} at step {self.step_index}: {message}; lower base_lr or check its centring"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs; plain containers and tensors, so `torch.load(weights_only=True)` reads it."""
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        return {
            "format": 1, "step": self.step_index, "objective": self.objective.name,
            "objective_config": self.objective.config.model_dump(mode="json"),
            "train_config": self.config.model_dump(mode="json"), "samples": self.samples,
            "model": self.objective.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random,
            "alarm": dict(self.alarm.counts),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes. Raises UsageError when the checkpoint is of another objective, config or data size, naming what differs."""
        check_same_run(state, self.state_header())
        self.objective.load_state_dict(state["model"])
        self.optimizer.load_state_dict(regroup(state["optimizer"], self.optimizer))
        self.step_index = int(state["step"])
        self.alarm.counts = dict(state["alarm"])
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if "cuda" in state["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu())

    def state_header(self) -> dict[str, Any]:
        """The part of the state that says which run it is."""
        return {
            "objective": self.objective.name,
            "objective_config": self.objective.config.model_dump(mode="json"),
            "train_config": self.config.model_dump(mode="json"),
            "samples": self.samples,
        }


# Settings that may change between a checkpoint and its resume without making it another run.
_FREE = {"accumulate", "precision", "grad_checkpointing", "monitor_every", "on_collapse"}
# What runs did before these keys were: a checkpoint that lacks a key was written then, and can go on with these.
_BEFORE: dict[str, Any] = {
    "drop_path": 0.0, "interpolation": "area", "fixed_positions": False, "saturation": 0.5, "layer_scale": 0.0,
    "projection_layers": 2, "projection_norm": False, "projector_layers": 3, "predictor_norm": True,
    "shared_position_bias": False, "jitter_probability": 0.8, "rand_augment": 0.0, "erase": 0.0,
    "eps": 1e-8, "sgd_momentum": 0.9, "no_decay": "vectors_and_tokens", "warmup_steps": None, "clip_by": "all",
}  # fmt: skip


def check_same_run(state: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises UsageError naming the first setting in which a checkpoint and this run differ, and all that would restore it."""
    for part, want in mine.items():
        have = state.get(part)
        if not isinstance(want, dict) or not isinstance(have, dict):
            if have != want:
                raise UsageError(
                    f"the checkpoint is of another run: {part} was {have!r}, now {want!r}; use another folder"
                )
            continue
        was = {
            key: have.get(key, _BEFORE.get(key, want.get(key)))
            for key in sorted(set(want) | set(have))
            if key not in _FREE
        }
        differing = [key for key in was if was[key] != want.get(key)]
        if differing:
            first, settings = differing[0], " ".join(f"{key}={json.dumps(was[key])}" for key in differing)
            raise UsageError(
                f"the checkpoint is of another config: {part}.{first} was {was[first]!r}, now {want.get(first)!r}; go on "
                f"with what it was ({settings}), or start a new run in another folder"
            )


def regroup(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved optimiser's state under this optimiser's groups, parameter by parameter, by name.

    Groups follow from the settings and from this code: a later version may decay or scale a parameter otherwise, or leave
    one out. The state of a parameter that learns no more is dropped.
    """
    if not all("names" in group for group in saved["param_groups"]):
        return saved
    slots = {
        name: saved["state"][index]
        for group in saved["param_groups"]
        for name, index in zip(group["names"], group["params"])
        if index in saved["state"]
    }
    current = optimizer.state_dict()
    placed = ((name, i) for g in current["param_groups"] for name, i in zip(g["names"], g["params"]))
    return {**current, "state": {index: slots[name] for name, index in placed if name in slots}}


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float) -> None:
    """Scales the gradients of these parameters so that their joint norm is at most `limit`; sharded ones and whole ones may
    be mixed, which torch's own clipping refuses."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in gradients if hasattr(g, "full_tensor")]
    whole = [g for g in gradients if not hasattr(g, "full_tensor")]
    norms = [nn.utils.get_total_norm(whole)] if whole else []
    norms += [nn.utils.get_total_norm(sharded).full_tensor()] if sharded else []
    if not norms:
        return
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)


def clip_groups(objective: nn.Module, clip_by: str) -> list[list[nn.Parameter]]:
    """Parameters whose gradients are clipped together. A mask token belongs to the backbone, as in the authors' networks."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    if clip_by == "parameter":
        return [[p] for p in parameters]
    if clip_by == "all":
        return [parameters]
    own = list(objective.parameters(recurse=False))
    return [list(m.parameters()) + (own if name == "backbone" else []) for name, m in objective.named_children()]


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Mean of the gradients over ranks, in one flat message per dtype. A parameter without gradient here counts as 0."""
    by_type: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            by_type.setdefault(parameter.dtype, []).append(parameter)
    for parameters in by_type.values():
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        used = all_reduce_detached(used.to(parameters[0].device), "max").tolist()
        active = [p for p, flag in zip(parameters, used) if flag]
        if not active:
            continue
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in active])
        dist.all_reduce(flat)
        flat /= world_size()
        for parameter, part in zip(active, flat.split([p.numel() for p in active])):
            parameter.grad = part.view_as(parameter)
