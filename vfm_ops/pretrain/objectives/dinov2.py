"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo on the batch. Oquab et al. 2023; Zhou et al. 2022."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfm_ops.pretrain.augment import ViewPlan
from vfm_ops.pretrain.backbones import check_patch, masked_tokens, require_vit
from vfm_ops.pretrain.ema import ema_update, momentum_copy
from vfm_ops.pretrain.heads import PrototypeHead
from vfm_ops.pretrain.layouts import dinov2_model
from vfm_ops.pretrain.losses.dino import Centre, dino_loss
from vfm_ops.pretrain.losses.ibot import ibot_loss
from vfm_ops.pretrain.losses.koleo import koleo_loss
from vfm_ops.pretrain.losses.sinkhorn import sinkhorn
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch
from vfm_ops.pretrain.objectives.dino import DINO, DINOConfig, target_statistics
from vfm_ops.pretrain.presets import COARSE, MULTI_CROP, TEACHER, Preset
from vfm_ops.pretrain.recipe import Recipe, official
from vfm_ops.pretrain.registry import register

_DEFAULT = "facebookresearch/dinov2 dinov2/configs/ssl_default_config.yaml"
_SHORT = "facebookresearch/dinov2 dinov2/configs/train/vitl16_short.yaml"
_LONG = "facebookresearch/dinov2 dinov2/configs/train/vitl14.yaml"
_AUGMENTATION = "facebookresearch/dinov2 dinov2/data/augmentations.py"
_CLS_LOSS = "facebookresearch/dinov2 dinov2/loss/dino_clstoken_loss.py"
_TRAIN = "facebookresearch/dinov2 dinov2/train/train.py"
_GROUPS = "facebookresearch/dinov2 dinov2/utils/param_groups.py"

_MODEL = {
    **official(_DEFAULT, prototypes=65536, head_hidden=2048, bottleneck=256, ibot_bottleneck=256, koleo_weight=0.1),
    **official(_DEFAULT, dino_weight=1.0, ibot_weight=1.0, separate_ibot_head=False, target="centring"),
    **official(_DEFAULT, mask_probability=0.5, mask_ratio=(0.1, 0.5), drop_path=0.3, layer_scale=1e-5, momentum=0.992),
    **official(_DEFAULT, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=30),
    **official(_DEFAULT, freeze_last_layer_epochs=1, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32)),
    **official(_DEFAULT, local_crops=8, local_size=96, patch=16),
    **official("facebookresearch/dinov2 dinov2/data/masking.py", min_block=4),
    **official(_CLS_LOSS, student_temperature=0.1, centre_momentum=0.9, centring=True),
    **official(_AUGMENTATION, interpolation="bicubic", jitter=0.4, saturation=0.5, gray=0.2, blur=(1.0, 0.1)),
    **official(_AUGMENTATION, local_blur=0.5, solarize=(0.0, 0.2)),
    **official(_SHORT, version="short"),
    **official(_DEFAULT, backbone="vit_large_patch16_224"),
}
_TRAINING = {
    **official(_DEFAULT, base_lr=4e-3, lr_scaling="sqrt1024", min_lr=1e-6, weight_decay=0.04, weight_decay_end=0.4),
    **official(_DEFAULT, betas=(0.9, 0.999), warmup_epochs=10, epochs=100, clip_grad=3.0, layer_decay=0.9),
    **official(_DEFAULT, patch_embed_lr_scale=0.2),
    **official(f"{_TRAIN} (clip_grad_norm_ of each network)", clip_by="module"),
    **official(_TRAIN, optimizer="adamw", eps=1e-8),
    **official(_GROUPS, no_decay="vectors"),
    **official("facebookresearch/dinov2 README.md (4 nodes x 8 GPUs x 64)", batch_size=2048),
}
_BUILT = {
    **official(
        "facebookresearch/dinov2 dinov2/layers/dino_head.py",
        head="linear-gelu-linear-gelu-linear, unit bottleneck, unit prototypes",
    ),
    **official(_DEFAULT, drop_path_schedule="the same at every block"),
    **official(_GROUPS, mask_token_layer=0),
    **official(_CLS_LOSS, sinkhorn="over the class tokens of both crops together, 3 iterations"),
}
_DIFFERS = (
    "Prototypes have unit length, as in DINO; the authors' start with it and may leave it. So logits stay bounded.",
    "An epoch is a pass over the data; the authors count 1,250 steps (OFFICIAL_EPOCH_LENGTH).",
)
RECIPES = (
    Recipe("the short recipe", {"version": "short"}, _MODEL, _TRAINING, _BUILT, _DIFFERS),
    Recipe(
        "the long recipe",
        {"version": "long"},
        {
            **_MODEL,
            **official(
                _LONG, version="long", backbone="vit_large_patch14_dinov2", patch=14, local_size=98, drop_path=0.4
            ),
            **official(_LONG, prototypes=131072, bottleneck=384, separate_ibot_head=True, target="sinkhorn"),
            **official(_LONG, momentum=0.994),
        },
        {
            **_TRAINING,
            **official(_LONG, base_lr=2e-4, weight_decay_end=0.2, warmup_epochs=80, epochs=500, layer_decay=1.0),
            **official("facebookresearch/dinov2 README.md (12 nodes x 8 GPUs x 32)", batch_size=3072),
        },
        _BUILT,
        (
            *_DIFFERS,
            "Blocks have a plain perceptron as the published ViT-L/14, not SwiGLU: set a *_giant_* backbone for that.",
        ),
    ),
)


SMALL = Preset(
    {**MULTI_CROP, "backbone_args": COARSE, "patch": 7, "teacher_temperature_epochs": 0.3, "target": "sinkhorn",
     "layer_scale": 0.0},
    {**TEACHER, "layer_decay": 1.0, "patch_embed_lr_scale": 1.0},
)  # fmt: skip


class DINOv2Config(DINOConfig):
    recipes = RECIPES

    version: Literal["short", "long"] = Field(description="short: ViT-L/16 on ImageNet-1k; long: ViT-L/14 on more data")
    patch: int = Field(gt=0, description="patch side in pixels, as the backbone has it")
    layer_scale: float = Field(ge=0, description="initial scale of each layer's output; 0: none")
    target: Literal["centring", "sinkhorn"] = Field(description="balance targets by a centre, or by Sinkhorn-Knopp")
    dino_weight: float = Field(ge=0, description="weight of DINO's loss")
    ibot_weight: float = Field(ge=0, description="weight of iBOT's loss")
    koleo_weight: float = Field(ge=0, description="weight of KoLeo")
    separate_ibot_head: bool = Field(description="a head of its own for patches (the long recipe)")
    ibot_bottleneck: int = Field(gt=0, description="width of the bottleneck of that head")
    mask_probability: float = Field(ge=0, le=1, description="share of global crops that are masked")
    mask_ratio: tuple[float, float] = Field(description="masked share of a masked crop, uniform")
    min_block: int = Field(gt=0, description="patches of the smallest masked rectangle")

    def timm_arguments(self) -> dict[str, Any]:
        """Layer scale, of a ViT."""
        if not self.backbone.removeprefix("timm:").startswith(("vit_", "beit")):
            return self.backbone_args
        return {"init_values": self.layer_scale or None, **self.backbone_args}


@register
class DINOv2(DINO):
    """The teacher sees whole global crops; the student sees them masked, and the local crops."""

    name = "dinov2"
    small = SMALL
    Config = DINOv2Config
    uniform_drop_path = True

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__(config)
        self.config: DINOv2Config = config
        require_vit(self.backbone, self.name)
        check_patch(self.backbone, config.patch, self.name)
        self.mask_token = torch.nn.Parameter(torch.zeros(self.width))
        if config.separate_ibot_head:
            self.patch_head = PrototypeHead(self.width, config.prototypes, config.head_hidden, config.ibot_bottleneck)
            self.teacher_patch_head = momentum_copy(self.patch_head)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)

    @classmethod
    def view_plan(cls, config: Any) -> ViewPlan:
        side = config.image_size // config.patch
        mask = MaskPlan(
            "mask", (side, side), "ibot", min_block=config.min_block, ratio_range=config.mask_ratio,
            probability=config.mask_probability, views=2,
        )  # fmt: skip
        return ViewPlan(super().view_plan(config).crops, (mask,))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images, mask_B2L = self.normalise(batch["global"]), batch["mask"]
        with torch.no_grad():
            prefix, patches = masked_tokens(self.teacher_backbone, images)
            teacher = {"teacher": prefix[:, 0].unflatten(0, (-1, 2)), "teacher_patches": patches.unflatten(0, (-1, 2))}
        prefix, patches = masked_tokens(self.backbone, images, mask_B2L.flatten(0, 1), self.mask_token)
        student = [prefix[:, 0].unflatten(0, (-1, 2))]
        if "local" in batch:
            local = batch["local"]
            student.append(masked_tokens(self.backbone, self.normalise(local))[0][:, 0].unflatten(0, local.shape[:2]))
        student_patches = patches.unflatten(0, (-1, 2))
        return {"student": torch.cat(student, dim=1), "student_patches": student_patches, "mask": mask_B2L, **teacher}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        c, temperature = self.config, self.teacher_temperature()
        student_SBK = self.head(features["student"]).transpose(0, 1)
        with torch.no_grad():
            teacher_2BK = self.teacher_head(features["teacher"]).transpose(0, 1)
        target_2BK = self._targets(teacher_2BK, self.centre, temperature)
        # The pair of equal views is skipped, so each global crop of the student meets the teacher's other one.
        dino = dino_loss(student_SBK, target_2BK, c.student_temperature)
        koleo = sum(koleo_loss(crop_BD) for crop_BD in features["student"][:, :2].unbind(1))
        ibot = self._ibot(features, temperature)
        loss = c.dino_weight * dino + c.ibot_weight * ibot + c.koleo_weight * koleo
        logs = {"dino": dino.detach(), "ibot": ibot.detach(), "koleo": koleo.detach()}
        return {"loss": loss, **logs, **target_statistics(target_2BK)}

    def _ibot(self, features: dict[str, Tensor], temperature: float) -> Tensor:
        """iBOT at masked patches; images are the 2B global crops."""
        mask_B2L = features["mask"]
        count_B21 = mask_B2L.sum(-1, keepdim=True).clamp(min=1)
        weight_M = (1 / count_B21).expand(mask_B2L.shape)[mask_B2L]
        separate = self.config.separate_ibot_head
        student_MK = (self.patch_head if separate else self.head)(features["student_patches"][mask_B2L])
        with torch.no_grad():
            head = self.teacher_patch_head if separate else self.teacher_head
            teacher_MK = head(features["teacher_patches"][mask_B2L])
        target_MK = self._targets(teacher_MK, self.patch_centre, temperature)
        return ibot_loss(student_MK, target_MK, weight_M, mask_B2L[..., 0].numel(), self.config.student_temperature)

    def _targets(self, logits: Tensor, centre: Centre, temperature: float) -> Tensor:
        if self.config.target == "sinkhorn":
            # Both crops' class tokens are assigned together: a prototype may take more of the one and less of the other.
            return sinkhorn(logits.flatten(0, -2), temperature).view(logits.shape)
        target = centre.probabilities(logits, temperature)
        if self.training and self.config.centring:
            centre.update(logits)  # the targets above are already made with the centre as it was
        return target

    def after_backward(self) -> None:
        super().after_backward()
        if self.config.separate_ibot_head and self.step < self.config.freeze_last_layer_epochs * self.steps_per_epoch:
            self.patch_head.last_layer.weight.grad = None

    def after_step(self) -> None:
        super().after_step()
        if self.config.separate_ibot_head:
            ema_update(self.teacher_patch_head, self.patch_head, self.momentum_now())

    def transformers_model(self, backbone: torch.nn.Module, settings: dict[str, Any]) -> Any:
        """Dinov2Model, of a plain ViT also where it has no layer scale."""
        return None if type(backbone).__name__ == "Beit" else dinov2_model(settings)
