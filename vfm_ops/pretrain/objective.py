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

from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vfm_ops.pretrain.augment import Interpolation, ViewPlan
from vfm_ops.pretrain.backbones import build_backbone, set_drop_path
from vfm_ops.pretrain.load import load_backbone
from vfm_ops.pretrain.param_groups import NoDecay, param_groups
from vfm_ops.pretrain.presets import Preset
from vfm_ops.pretrain.recipe import Recipe, choose, patch_side

Batch = dict[str, Tensor]


class ObjectiveConfig(BaseModel):
    """Settings that all objectives share. A key that is left out takes the value of the recipe that the others choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipes: ClassVar[tuple[Recipe, ...]] = ()

    backbone: str = Field(description="timm model name")
    weights: str = Field(
        "", description="timm or transformers directory whose backbone to start from; `backbone` is then unused"
    )
    backbone_args: dict[str, Any] = Field({}, description="timm model arguments, such as patch_size, depth, embed_dim")
    drop_path: float = Field(ge=0, lt=1, description="stochastic depth of a ViT: rate of the last block")
    image_size: int = Field(224, gt=0, description="side of the (global) views in pixels")
    channels: int = Field(3, gt=0, description="image channels")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="per channel, of pixels in [0, 1]")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    interpolation: Interpolation = Field(
        description="of crops, antialiased; area: OpenCV's area filter, fast and softer, linear upwards"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, data: Any) -> Any:
        if not cls.recipes or not isinstance(data, dict):
            return data
        filled = {**choose(cls.recipes, data).model_values(), **data}
        side = patch_side(filled)
        if side and "patch" in filled and "patch" not in data:
            filled["patch"] = side
        if side and "local_size" in filled and "local_size" not in data:
            filled["local_size"] = -(-filled["local_size"] // side) * side  # DINOv2: 96, and 98 for patches of 14
        return filled

    def timm_arguments(self) -> dict[str, Any]:
        """Arguments of the timm model: what the objective asks of its network, then what the user said."""
        return self.backbone_args


class Objective(nn.Module):
    """Base of all objectives. Subclasses set `name` and `Config`, define `view_plan`, `encode`, `loss`, and are registered."""

    name: ClassVar[str]
    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    # Whether a sample's loss depends on the others of its batch, so that micro-batches must be put together again.
    batch_coupled: bool = True
    # Whether kNN is a fair gate; MAE and BEiT are judged by a probe (their features are not linear in class distance).
    knn_gate: ClassVar[bool] = True
    # Whether every block is dropped at the same rate; else it rises from 0 at the first block.
    uniform_drop_path: ClassVar[bool] = False
    # The column, beside its picture, that every sample must have a value of.
    reads: ClassVar[Literal["label", "caption"] | None] = None
    # What a report draws of it: `reconstruct`'s pictures, or the attention of the backbone's class token.
    drawing: ClassVar[Literal["reconstruction", "attention"] | None] = None
    # transformers' class that prepares pictures for the exported model.
    image_processor: ClassVar[str] = "ViTImageProcessor"
    # Settings that learn within minutes from small pictures; None: there is no such preset.
    small: ClassVar[Preset | None] = None

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        if config.weights:
            self.backbone = load_backbone(config.weights)
        else:
            args = config.timm_arguments()
            self.backbone = build_backbone(config.backbone, config.image_size, config.channels, args)
        if config.drop_path and "drop_path_rate" not in config.backbone_args:
            set_drop_path(self.backbone, config.drop_path, uniform=self.uniform_drop_path)
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

    def param_groups(
        self,
        layer_decay: float = 1.0,
        patch_embed_lr_scale: float = 1.0,
        no_decay: NoDecay = "vectors_and_tokens",
    ) -> list[dict]:
        """Optimiser groups; see `vfm_ops.pretrain.param_groups`."""
        return param_groups(self, "backbone", layer_decay, patch_embed_lr_scale, no_decay)

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

    def transformers_model(self, backbone: nn.Module, settings: dict[str, Any]) -> Any:
        """An empty transformers model of a ViT's sizes with what the objective has beside it; None: one of the ViT alone.

        settings: as transformers' vision configs name the sizes of `backbone`.
        """
        return None

    def fill_transformers(self, model: Any) -> None:
        """Writes what is not the backbone's into the model that `transformers_model` made, in place."""

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> features (B, width), float32, not normalised, in eval mode."""
        network = self.evaluation_backbone()
        was_training = network.training
        network.eval()
        features = network(self.normalise(images)).float()
        network.train(was_training)
        return features
