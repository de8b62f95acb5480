"""Supervised classification: cross-entropy with label smoothing, mixup and cutmix. DeiT's defaults (Touvron et al. 2021)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.losses.soft_target import soft_cross_entropy
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig, TrainDefaults


class SupervisedConfig(ObjectiveConfig):
    classes: int = Field(1000, gt=1, description="number of classes; labels are 0 .. classes - 1")
    smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing")
    mixup: float = Field(0.8, ge=0, description="Beta parameter of mixup; 0 turns it off")
    cutmix: float = Field(
        1.0, ge=0, description="Beta parameter of cutmix; 0 turns it off; with both on, a coin decides"
    )
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image that a crop takes")
    jitter: float = Field(0.3, ge=0, description="strength of brightness, contrast and saturation jitter")


class Supervised(Objective):
    """Backbone and a linear classifier."""

    name = "supervised"
    Config = SupervisedConfig
    defaults = TrainDefaults(base_lr=5e-4, lr_scaling="linear512", warmup_epochs=5, epochs=300)
    batch_coupled = False

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__(config)
        self.config: SupervisedConfig = config
        self.classifier = nn.Linear(self.width, config.classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def view_plan(cls, config: SupervisedConfig) -> ViewPlan:
        j = config.jitter
        crop = CropPlan("image", 1, config.image_size, config.crop_scale, flip_p=config.flip, jitter=(j, j, j, 0.0))
        return ViewPlan((crop,), label=True)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        label = batch["label"]
        if self.training and int(label.max()) >= self.config.classes:
            raise UsageError(f"label {int(label.max())} is outside 0 .. {self.config.classes - 1}: set classes")
        images, target = self.normalise(batch["image"]), F.one_hot(label, self.config.classes).float()
        if self.training and (self.config.mixup or self.config.cutmix):
            images, target = mix(images, target, self.config.mixup, self.config.cutmix)
        return {"features": self.backbone(images), "target": target}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits_BC = self.classifier(features["features"])
        loss = soft_cross_entropy(widen(logits_BC), features["target"], self.config.smoothing)
        accuracy = (logits_BC.argmax(1) == features["target"].argmax(1)).float().mean()
        return {"loss": loss, "accuracy": accuracy.detach()}


def mix(images_BCHW: Tensor, target_BC: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Blends each image with the one opposite in the batch: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    Cutmix weighs the labels by the pasted area as it came out after clipping at the border. Uses torch's global RNG.
    """
    kind: Literal["mixup", "cutmix"] = "cutmix" if cutmix and (not mixup or float(torch.rand(())) < 0.5) else "mixup"
    alpha = torch.tensor(cutmix if kind == "cutmix" else mixup)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other, other_target = images_BCHW.flip(0), target_BC.flip(0)
    if kind == "mixup":
        return share * images_BCHW + (1 - share) * other, share * target_BC + (1 - share) * other_target
    height, width = images_BCHW.shape[-2:]
    half_h, half_w = (0.5 * side * (1 - share) ** 0.5 for side in (height, width))
    centre_y, centre_x = float(torch.rand(())) * height, float(torch.rand(())) * width
    top, bottom = max(0, round(centre_y - half_h)), min(height, round(centre_y + half_h))
    left, right = max(0, round(centre_x - half_w)), min(width, round(centre_x + half_w))
    mixed = images_BCHW.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, share * target_BC + (1 - share) * other_target
