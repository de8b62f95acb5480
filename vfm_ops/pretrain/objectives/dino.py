"""DINO: a student with all crops follows a momentum teacher with the global ones. Caron et al. 2021."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.ema import ema_update, momentum_copy
from vfm_ops.pretrain.heads import PrototypeHead
from vfm_ops.pretrain.losses.dino import Centre, dino_loss
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.presets import COARSE, MULTI_CROP, TEACHER, Preset
from vfm_ops.pretrain.recipe import Default, Recipe, official
from vfm_ops.pretrain.registry import register
from vfm_ops.pretrain.schedules import Cosine, Warmup

_MAIN = "facebookresearch/dino main_dino.py"
_LOSS = f"{_MAIN} (DINOLoss)"
_AUGMENTATION = f"{_MAIN} (DataAugmentationDINO)"
_HEAD = "facebookresearch/dino vision_transformer.py (DINOHead)"
_RESNET = "facebookresearch/dino README.md (ResNet-50 and other convnets)"


def _model(**more: Default) -> dict[str, Default]:
    """What both networks share."""
    return {
        **official(_MAIN, prototypes=65536, momentum=0.996, teacher_temperature=0.04, teacher_temperature_start=0.04),
        **official(_MAIN, teacher_temperature_epochs=0, freeze_last_layer_epochs=1, local_crops=8),
        **official(_HEAD, head_hidden=2048, bottleneck=256),
        **official(_LOSS, student_temperature=0.1, centre_momentum=0.9, centring=True),
        **official(_AUGMENTATION, local_size=96, interpolation="bicubic", jitter=0.4, saturation=0.5, gray=0.2),
        **official(_AUGMENTATION, blur=(1.0, 0.1), local_blur=0.5, solarize=(0.0, 0.2)),
        **more,
    }


def _training(**more: Default) -> dict[str, Default]:
    return {
        **official(_MAIN, lr_scaling="linear256", min_lr=1e-6, warmup_epochs=10, epochs=100, clip_grad=3.0),
        **official("facebookresearch/dino utils.py (clip_gradients)", clip_by="parameter"),
        **official("facebookresearch/dino utils.py (get_params_groups)", no_decay="vectors"),
        **official("facebookresearch/dino README.md (2 nodes x 8 GPUs x 64)", batch_size=1024),
        **more,
    }


_BUILT = {
    **official(_HEAD, head="linear-gelu-linear-gelu-linear, unit bottleneck, unit prototypes"),
    **official(_MAIN, teacher_momentum="rises to 1 by a cosine"),
}
RECIPES = (
    Recipe(
        "a ViT",
        {"network": "vit"},
        _model(
            **official(_MAIN, backbone="vit_small_patch16_224", drop_path=0.1, global_scale=(0.4, 1.0)),
            **official(_MAIN, local_scale=(0.05, 0.4)),
        ),
        _training(
            **official(_MAIN, optimizer="adamw", base_lr=5e-4, weight_decay=0.04, weight_decay_end=0.4),
            **official(f"{_MAIN} (torch's AdamW)", betas=(0.9, 0.999), eps=1e-8),
        ),
        _BUILT
        | official("facebookresearch/dino vision_transformer.py", drop_path_schedule="linear from 0"),
    ),
    Recipe(
        "a convnet",
        {"network": "convnet"},
        _model(
            **official(_RESNET, backbone="resnet50", global_scale=(0.14, 1.0), local_scale=(0.05, 0.14)),
            **official(f"{_MAIN} (for ViTs only)", drop_path=0.0),
        ),
        _training(
            **official(_RESNET, optimizer="sgd", base_lr=0.03, weight_decay=1e-4, weight_decay_end=1e-4),
            **official(_MAIN, sgd_momentum=0.9),
        ),
        _BUILT,
        (
            "The teacher of a network with batch norms normalises with averaged statistics (EMAN, Cai et al. 2021), the "
            "authors' with those of its batch.",
        ),
    ),
)  # fmt: skip


SMALL = Preset({**MULTI_CROP, "backbone_args": {**COARSE, "global_pool": "avg", "fc_norm": False}}, TEACHER)


class DINOConfig(ObjectiveConfig):
    recipes = RECIPES

    prototypes: int = Field(gt=1, description="outputs of the head, K")
    head_hidden: int = Field(gt=0, description="hidden width of the head")
    bottleneck: int = Field(gt=0, description="width of the head's normalised bottleneck")
    student_temperature: float = Field(gt=0, description="of the student's softmax")
    teacher_temperature: float = Field(gt=0, description="of the teacher's softmax after its warm-up")
    teacher_temperature_start: float = Field(gt=0, description="of the teacher's softmax at the start")
    teacher_temperature_epochs: float = Field(ge=0, description="length of that warm-up")
    centring: bool = Field(description="subtract the running centre from the teacher's logits; off collapses")
    centre_momentum: float = Field(ge=0, lt=1, description="of the centre")
    momentum: float = Field(ge=0, lt=1, description="of the teacher at the start; rises to 1 by a cosine")
    freeze_last_layer_epochs: float = Field(ge=0, description="epochs during which the prototypes do not learn")
    global_scale: tuple[float, float] = Field(description="area of the two global crops")
    local_scale: tuple[float, float] = Field(description="area of the local crops")
    local_crops: int = Field(ge=0, description="number of local crops")
    local_size: int = Field(gt=0, description="side of the local crops in pixels, a multiple of a ViT's patch")
    jitter: float = Field(ge=0, description="strength of brightness and contrast jitter; a quarter of it is hue's")
    saturation: float = Field(ge=0, description="of jitter's strength, the share that saturation gets")
    gray: float = Field(ge=0, le=1, description="probability of grey")
    blur: tuple[float, ...] = Field(description="probability of blur for the two global crops")
    local_blur: float = Field(ge=0, le=1, description="probability of blur for local crops")
    solarize: tuple[float, ...] = Field(description="probability of solarising for the two global crops")


@register
class DINO(Objective):
    """Student and teacher of the same form; the teacher's centre and weights are in state_dict."""

    name = "dino"
    small = SMALL
    drawing = "attention"
    Config: ClassVar[type[ObjectiveConfig]] = DINOConfig

    def __init__(self, config: DINOConfig) -> None:
        super().__init__(config)
        self.config: DINOConfig = config
        self.head = PrototypeHead(self.width, config.prototypes, config.head_hidden, config.bottleneck)
        self.teacher_backbone, self.teacher_head = momentum_copy(self.backbone), momentum_copy(self.head)
        self.centre = Centre(config.prototypes, config.centre_momentum)

    @classmethod
    def view_plan(cls, config: Any) -> ViewPlan:
        j = config.jitter
        shared: dict[str, Any] = {
            "flip_p": config.flip, "jitter": (j, j, j * config.saturation, j / 4), "gray_p": config.gray,
            "interpolation": config.interpolation,
        }  # fmt: skip
        crops = [
            CropPlan(
                "global",
                2,
                config.image_size,
                config.global_scale,
                blur_p=config.blur,
                solarize_p=config.solarize,
                **shared,
            )
        ]
        if config.local_crops:
            crops.append(
                CropPlan(
                    "local",
                    config.local_crops,
                    config.local_size,
                    config.local_scale,
                    blur_p=(config.local_blur,),
                    **shared,
                )
            )
        return ViewPlan(tuple(crops))

    def train(self, mode: bool = True) -> DINO:
        """The teacher stays in eval mode: no drop path, averaged statistics."""
        super().train(mode)
        self.teacher_backbone.eval()
        self.teacher_head.eval()
        return self

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images = self.normalise(batch["global"])
        with torch.no_grad():
            teacher_B2D = self.teacher_backbone(images).unflatten(0, (-1, 2))
        student = [self.backbone(images).unflatten(0, (-1, 2))]
        if "local" in batch:
            local = batch["local"]
            student.append(self.backbone(self.normalise(local)).unflatten(0, local.shape[:2]))
        return {"student": torch.cat(student, dim=1), "teacher": teacher_B2D}

    def teacher_temperature(self) -> float:
        """At this step."""
        c = self.config
        warm = Warmup(
            c.teacher_temperature_start,
            c.teacher_temperature,
            round(c.teacher_temperature_epochs * self.steps_per_epoch),
        )
        return warm(self.step)

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        student_SBK = self.head(features["student"]).transpose(0, 1)
        with torch.no_grad():
            teacher_2BK = self.teacher_head(features["teacher"]).transpose(0, 1)
        target_2BK = self.centre.probabilities(teacher_2BK, self.teacher_temperature())
        loss = dino_loss(student_SBK, target_2BK, self.config.student_temperature)
        if self.training and self.config.centring:
            self.centre.update(teacher_2BK)  # after the loss: the targets were centred by earlier batches
        return {"loss": loss, **target_statistics(target_2BK)}

    def after_backward(self) -> None:
        """Cancels the prototypes' gradients in the first epochs; comes after clipping, whose norm includes them."""
        if self.step < self.config.freeze_last_layer_epochs * self.steps_per_epoch:
            self.head.last_layer.weight.grad = None

    def momentum_now(self) -> float:
        """The teacher's momentum at this step."""
        return Cosine(self.config.momentum, 1.0, self.total_steps)(self.step)

    def after_step(self) -> None:
        ema_update(self.teacher_backbone, self.backbone, self.momentum_now())
        ema_update(self.teacher_head, self.head, self.momentum_now())

    def evaluation_backbone(self) -> torch.nn.Module:
        return self.teacher_backbone


@torch.no_grad()
def target_statistics(target: Tensor) -> dict[str, Tensor]:
    """Entropy of single targets and of their mean, in nats: the first at ln K is a uniform collapse, the second at 0 a
    collapse to one prototype. target: probabilities (..., K)."""
    rows = target.flatten(0, -2)
    return {
        "target_entropy": torch.special.entr(rows).sum(-1).mean(),
        "mean_target_entropy": torch.special.entr(rows.mean(0)).sum(),
    }
