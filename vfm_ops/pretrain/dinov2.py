"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo on the batch. Oquab et al. 2023; Zhou et al. 2022."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfm_ops.pretrain.augment import ViewPlan
from vfm_ops.pretrain.backbones import masked_tokens, require_vit
from vfm_ops.pretrain.dino import DINO, DINOConfig, target_statistics
from vfm_ops.pretrain.ema import ema_update, momentum_copy
from vfm_ops.pretrain.heads import PrototypeHead
from vfm_ops.pretrain.losses.dino import Centre, dino_loss
from vfm_ops.pretrain.losses.ibot import ibot_loss
from vfm_ops.pretrain.losses.koleo import koleo_loss
from vfm_ops.pretrain.losses.sinkhorn import sinkhorn
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch, TrainDefaults


class DINOv2Config(DINOConfig):
    backbone: str = Field("vit_large_patch14_dinov2", description="timm model name of a ViT")
    patch: int = Field(14, gt=0, description="patch side in pixels, as the backbone has it")
    local_size: int = Field(98, gt=0, description="side of the local crops in pixels, a multiple of the patch")
    global_scale: tuple[float, float] = Field((0.32, 1.0), description="area of the two global crops")
    local_scale: tuple[float, float] = Field((0.05, 0.32), description="area of the local crops")
    teacher_temperature: float = Field(0.07, gt=0, description="of the teacher's softmax after its warm-up")
    teacher_temperature_epochs: float = Field(30, ge=0, description="length of that warm-up")
    momentum: float = Field(0.992, ge=0, lt=1, description="of the teacher at the start; rises to 1 by a cosine")
    target: Literal["centring", "sinkhorn"] = Field(
        "centring", description="balance targets by a centre, or by Sinkhorn-Knopp"
    )
    dino_weight: float = Field(1.0, ge=0, description="weight of DINO's loss")
    ibot_weight: float = Field(1.0, ge=0, description="weight of iBOT's loss")
    koleo_weight: float = Field(0.1, ge=0, description="weight of KoLeo")
    separate_ibot_head: bool = Field(False, description="a head of its own for patches (the large recipe)")
    mask_probability: float = Field(0.5, ge=0, le=1, description="share of global crops that are masked")
    mask_ratio: tuple[float, float] = Field((0.1, 0.5), description="masked share of a masked crop, uniform")
    min_block: int = Field(4, gt=0, description="patches of the smallest masked rectangle")


class DINOv2(DINO):
    """The teacher sees whole global crops; the student sees them masked, and the local crops."""

    name = "dinov2"
    Config = DINOv2Config
    defaults = TrainDefaults(
        base_lr=4e-3, lr_scaling="sqrt1024", weight_decay=0.04, weight_decay_end=0.2, clip_grad=3.0, warmup_epochs=10,
        epochs=100, layer_decay=0.9, patch_embed_lr_scale=0.2, batch_size=1024,
    )  # fmt: skip

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__(config)
        self.config: DINOv2Config = config
        require_vit(self.backbone, self.name)
        self.mask_token = torch.nn.Parameter(torch.zeros(self.width))
        if config.separate_ibot_head:
            self.patch_head = PrototypeHead(self.width, config.prototypes, config.head_hidden, config.bottleneck)
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
            if logits.dim() == 2:
                return sinkhorn(logits, temperature)
            return torch.stack([sinkhorn(view_BK, temperature) for view_BK in logits])
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
