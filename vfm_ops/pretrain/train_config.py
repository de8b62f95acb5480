"""How to train: one documented config; keys that are left out take the values of the authors' recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.param_groups import NoDecay
from vfm_ops.pretrain.registry import describe, recipe_of
from vfm_ops.pretrain.schedules import Cosine


class TrainConfig(BaseModel):
    """Settings of a run. Batch sizes are of the global batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: Literal["adamw", "sgd", "lars"] = Field("adamw", description="lars: SGD at a rate of each layer's own")
    base_lr: float = Field(1e-3, gt=0, description="learning rate at the reference batch of lr_scaling")
    lr_scaling: Literal["linear256", "linear512", "sqrt1024", "none"] = Field(
        "linear256", description="lr = base_lr * B / 256, B / 512, sqrt(B / 1024), or as it is"
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's betas")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="of SGD and LARS")
    weight_decay: float = Field(0.05, ge=0, description="at the start")
    weight_decay_end: float | None = Field(None, ge=0, description="at the end of the cosine; null: constant")
    no_decay: NoDecay = Field("vectors_and_tokens", description="what weight decay leaves out")
    warmup_epochs: float = Field(10, ge=0, description="linear warm-up of the learning rate")
    warmup_steps: int | None = Field(None, ge=0, description="length of the warm-up in steps, instead of warmup_epochs")
    epochs: float = Field(100, gt=0, description="passes over the data")
    clip_grad: float | None = Field(None, gt=0, description="clip the gradient's norm at this")
    clip_by: Literal["all", "module", "parameter"] = Field(
        "all", description="whose norm: of all parameters, of backbone and heads apart, of each parameter"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from layer to layer, downwards"
    )
    patch_embed_lr_scale: float = Field(1.0, ge=0, description="factor for the patch embedding's learning rate")
    batch_size: int = Field(1024, gt=0, description="samples of a step, all ranks together")
    accumulate: int = Field(
        1, gt=0, description="micro-batches a rank's share is cut into; exact, but for what is random"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; weights and losses stay fp32")
    grad_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    seed: int = Field(0, description="of initialisation, data order and augmentation")
    monitor_every: int = Field(10, gt=0, description="steps between measures of effective rank and spread")
    on_collapse: Literal["warn", "stop"] = Field("warn", description="what the collapse alarm does")

    def learning_rate(self) -> float:
        """Peak learning rate after scaling."""
        b = self.batch_size
        factors = {"linear256": b / 256, "linear512": b / 512, "sqrt1024": math.sqrt(b / 1024), "none": 1.0}
        return self.base_lr * factors[self.lr_scaling]

    def steps_per_epoch(self, samples: int) -> int:
        """Steps in which `samples` are seen once; the last may reach into the next epoch."""
        return max(1, math.ceil(samples / self.batch_size))

    def total_steps(self, samples: int) -> int:
        """Steps of the run; epochs are counted in samples, so that no batch is cut short."""
        return max(1, round(self.epochs * samples / self.batch_size))

    def lr_schedule(self, samples: int) -> Cosine:
        """lr by step."""
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(self.warmup_epochs * samples / self.batch_size)
        return Cosine(
            self.learning_rate(), self.min_lr, self.total_steps(samples), min(warmup, self.total_steps(samples))
        )

    def wd_schedule(self, samples: int) -> Cosine:
        """Weight decay by step."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return Cosine(self.weight_decay, end, self.total_steps(samples))


def train_config(objective: str, model: Mapping[str, Any] | None = None, **settings: Any) -> TrainConfig:
    """The authors' settings for this objective, overridden by `settings`. UsageError names the key that is wrong.

    model: the objective's settings, whose version and backbone choose the recipe.
    """
    defaults = recipe_of(objective, model or {}).training_values()
    if "warmup_epochs" in settings:
        defaults.pop("warmup_steps", None)  # who asks for epochs does not want the recipe's steps
    try:
        config = TrainConfig(**{**defaults, **settings})
    except ValidationError as error:
        raise UsageError(describe(error, "training", list(TrainConfig.model_fields))) from error
    if config.batch_size % config.accumulate:
        raise UsageError(f"batch_size {config.batch_size} is not divisible by accumulate {config.accumulate}")
    return config
