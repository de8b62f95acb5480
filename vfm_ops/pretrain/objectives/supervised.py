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
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.presets import ADAMW, RESNET, Preset
from vfm_ops.pretrain.recipe import Recipe, official
from vfm_ops.pretrain.registry import register

_DEIT = "facebookresearch/deit main.py"
_TORCHVISION = "pytorch/vision references/classification/train.py"

RECIPES = (
    Recipe(
        "a ViT, by DeiT",
        {"network": "vit"},
        model=official(
            _DEIT, backbone="vit_base_patch16_224", drop_path=0.1, smoothing=0.1, mixup=0.8, cutmix=1.0, jitter=0.0,
            rand_augment=9.0, erase=0.25, interpolation="bicubic",
        )
        | official("facebookresearch/deit datasets.py (timm's create_transform)", crop_scale=(0.08, 1.0)),
        training=official(
            _DEIT, optimizer="adamw", base_lr=5e-4, lr_scaling="linear512", min_lr=1e-5, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=0.05, warmup_epochs=5, epochs=300, clip_grad=None,
        )
        | official("facebookresearch/deit README_deit.md (2 nodes x 8 GPUs x 64)", batch_size=1024)
        | official("facebookresearch/deit models.py (timm's no_weight_decay)", no_decay="vectors_and_positions"),
        built=official("facebookresearch/deit main.py (timm's create_model)", drop_path_schedule="linear from 0"),
        differs=(
            "No repeated augmentation and no average of the weights (EMA): the feed shows each image once an epoch.",
            "Colour jitter is 0 where RandAugment is on, as timm's transform has it; main.py's 0.4 has no effect there.",
        ),
    ),
    Recipe(
        "a convnet, by torchvision",
        {"network": "convnet"},
        model=official(
            _TORCHVISION, backbone="resnet50", drop_path=0.0, smoothing=0.0, mixup=0.0, cutmix=0.0, jitter=0.0,
            rand_augment=0.0, erase=0.0, interpolation="bilinear",
        )
        | official("pytorch/vision references/classification/presets.py", crop_scale=(0.08, 1.0)),
        training=official(
            _TORCHVISION, optimizer="sgd", base_lr=0.1, lr_scaling="linear256", min_lr=0.0, weight_decay=1e-4, sgd_momentum=0.9,
            no_decay="nothing", warmup_epochs=0, epochs=90, clip_grad=None,
        )
        | official("pytorch/vision references/classification/README.md (8 GPUs x 32)", batch_size=256),
        differs=("The learning rate falls by a cosine, the reference's by a factor of 10 every 30 epochs.",),
    ),
)  # fmt: skip


SMALL = Preset(
    {**RESNET, "classes": 10, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.05, "crop_scale": (0.7, 1.0), "jitter": 0.0},
    {**ADAMW, "weight_decay": 0.02, "epochs": 3},
)  # fmt: skip


class SupervisedConfig(ObjectiveConfig):
    recipes = RECIPES

    classes: int = Field(1000, gt=1, description="number of classes; labels are 0 .. classes - 1")
    smoothing: float = Field(ge=0, lt=1, description="label smoothing")
    mixup: float = Field(ge=0, description="Beta parameter of mixup; 0 turns it off")
    cutmix: float = Field(ge=0, description="Beta parameter of cutmix; 0 turns it off; with both on, a coin decides")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")
    jitter: float = Field(ge=0, description="strength of brightness, contrast and saturation jitter")
    rand_augment: float = Field(ge=0, le=10, description="magnitude of RandAugment's two operations; 0 turns it off")
    erase: float = Field(ge=0, le=1, description="probability that a rectangle is erased")


@register
class Supervised(Objective):
    """Backbone and a linear classifier."""

    name = "supervised"
    small = SMALL
    Config = SupervisedConfig
    batch_coupled = False
    reads = "label"

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__(config)
        self.config: SupervisedConfig = config
        self.classifier = nn.Linear(self.width, config.classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def view_plan(cls, config: SupervisedConfig) -> ViewPlan:
        j = config.jitter
        crop = CropPlan(
            "image", 1, config.image_size, config.crop_scale, flip_p=config.flip, jitter=(j, j, j, 0.0),
            interpolation=config.interpolation, rand_augment=config.rand_augment, erase_p=config.erase,
        )  # fmt: skip
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
