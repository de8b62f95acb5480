"""What every objective is: a module that says which views it wants, turns a batch into a loss, and keeps its own state.

A training step, for one process or many (`vfm_ops.pretrain.step.Stepper` does it):
    views on CPU workers  ->  objective.encode(batch): backbone features, per sample
                          ->  objective.loss(features): heads and loss over the whole (global) batch
    backward, clip, objective.after_backward(), optimiser step, objective.after_step()
The cut between encode and loss is what makes gradient accumulation exact for objectives that compare samples: features
are cached, the loss sees all of them at once, and each micro-batch is encoded again for its backward.
Everything that has a memory (teacher, queue, centre, logit scale) is a parameter or buffer, hence in state_dict.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vfm_ops.pretrain.augment import ViewPlan
from vfm_ops.pretrain.backbones import build_backbone
from vfm_ops.pretrain.load import load_backbone
from vfm_ops.pretrain.param_groups import param_groups

Batch = dict[str, Tensor]


class ObjectiveConfig(BaseModel):
    """Settings that all objectives share. Each objective's own defaults are its paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str = Field("vit_base_patch16_224", description="timm model name")
    weights: str = Field(
        "", description="timm or transformers directory whose backbone to start from; `backbone` is then unused"
    )
    backbone_args: dict[str, Any] = Field(
        {}, description="timm model arguments, such as patch_size, depth, drop_path_rate"
    )
    image_size: int = Field(224, gt=0, description="side of the (global) views in pixels")
    channels: int = Field(3, gt=0, description="image channels")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="per channel, of pixels in [0, 1]")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")


class TrainDefaults(BaseModel):
    """How the paper trains: read by TrainConfig where the user leaves a key out."""

    optimizer: str = "adamw"
    base_lr: float = 1e-3
    lr_scaling: str = "linear256"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    warmup_epochs: float = 10
    epochs: int = 100
    clip_grad: float | None = None
    layer_decay: float = 1.0
    patch_embed_lr_scale: float = 1.0
    batch_size: int = 1024


class Objective(nn.Module):
    """Base of all objectives. Subclasses set `name`, `Config`, `defaults`, and define `view_plan`, `encode`, `loss`."""

    name: ClassVar[str]
    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    defaults: ClassVar[TrainDefaults] = TrainDefaults()
    # Whether a sample's loss depends on the others of its batch, so that micro-batches must be put together again.
    batch_coupled: bool = True
    # Whether kNN is a fair gate; MAE and BEiT are judged by a probe (their features are not linear in class distance).
    knn_gate: ClassVar[bool] = True

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        if config.weights:
            self.backbone = load_backbone(config.weights)
        else:
            self.backbone = build_backbone(config.backbone, config.image_size, config.channels, config.backbone_args)
        self.width: int = self.backbone.num_features
        shape = (1, config.channels, 1, 1)
        self.register_buffer(
            "pixel_mean", torch.tensor(config.mean[: config.channels]).reshape(shape), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(config.std[: config.channels]).reshape(shape), persistent=False)
        self.step, self.total_steps, self.steps_per_epoch = 0, 1, 1

    @classmethod
    def view_plan(cls, config: Any) -> ViewPlan:
        """What CPU workers make of a sample."""
        raise TypeError(f"{cls.__name__} must define view_plan")

    def prepare(self, total_steps: int, steps_per_epoch: int, global_batch: int) -> None:
        """Called once before training: the length that schedules need, and checks that need the batch size."""
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch

    def set_step(self, step: int) -> None:
        """Tells schedules where training is. step: from 0."""
        self.step = step

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample features, each (B, ...): everything up to where samples meet."""
        raise TypeError(f"{type(self).__name__} must define encode")

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss` (scalar whose mean over ranks is the global loss) and detached scalars to log."""
        raise TypeError(f"{type(self).__name__} must define loss")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """batch: what `view_plan` promised, stacked. Returns `loss` and logs."""
        return self.loss(self.encode(batch))

    def after_backward(self) -> None:
        """After clipping, before the optimiser's step."""

    def after_step(self) -> None:
        """After the optimiser's step: momentum networks, clamps."""

    def param_groups(self, layer_decay: float = 1.0, patch_embed_lr_scale: float = 1.0) -> list[dict]:
        """Optimiser groups; see `vfm_ops.pretrain.param_groups`."""
        return param_groups(self, "backbone", layer_decay, patch_embed_lr_scale)

    def normalise(self, views: Tensor) -> Tensor:
        """uint8 (..., H, W, C) as workers deliver them -> float (N, C, H, W), normalised; leading dimensions flattened."""
        images = views.flatten(0, -4).permute(0, 3, 1, 2)
        if images.shape[1] == 1:  # grey travels as one channel and is repeated here
            images = images.expand(-1, self.config.channels, -1, -1)
        if images.dtype == torch.uint8:
            images = images.to(self.pixel_mean.dtype) / 255
        return (images - self.pixel_mean) / self.pixel_std

    def evaluation_backbone(self) -> nn.Module:
        """The network to evaluate and export: the teacher where there is one that is the better model."""
        return self.backbone

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> features (B, width), float32, not normalised, in eval mode."""
        network = self.evaluation_backbone()
        was_training = network.training
        network.eval()
        features = network(self.normalise(images)).float()
        network.train(was_training)
        return features
