"""MoCo v2 (a queue of keys) and v3 (no queue, symmetric, for ViTs). He et al. 2020; Chen et al. 2020; Chen et al. 2021."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.ema import ema_update, momentum_copy
from vfm_ops.pretrain.heads import projector
from vfm_ops.pretrain.losses.collective import all_gather_detached
from vfm_ops.pretrain.losses.moco import moco_queue_loss, moco_v3_loss
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig, TrainDefaults
from vfm_ops.pretrain.schedules import Cosine


class MoCoConfig(ObjectiveConfig):
    version: Literal["v2", "v3"] = Field("v3", description="v2: queue; v3: the batch is its own dictionary")
    dim: int = Field(256, gt=0, description="width of the compared vectors; v2: 128, v3: 256")
    hidden: int = Field(4096, gt=0, description="hidden width of the heads; v2: 2048, v3: 4096")
    queue: int = Field(65536, gt=0, description="v2: number of keys remembered, a multiple of the global batch")
    temperature: float = Field(1.0, gt=0, description="v2: 0.07 (0.2 in the v2 report), v3: 1.0 (0.2 for ViT)")
    momentum: float = Field(
        0.99, ge=0, lt=1, description="of the key encoder; v2: 0.999 constant, v3: 0.99 rising to 1"
    )
    freeze_patch_embed: bool = Field(True, description="v3 with a ViT: the patch embedding stays random (section 4.2)")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image that a crop takes")
    jitter: float = Field(
        0.4, ge=0, description="strength of brightness and contrast; half of it saturation, quarter hue"
    )
    gray: float = Field(0.2, ge=0, le=1, description="probability of grey")
    blur: tuple[float, ...] = Field((1.0, 0.1), description="probability of blur for the two views; 0 on small images")
    solarize: tuple[float, ...] = Field((0.0, 0.2), description="probability of solarising for the two views")


class MoCo(Objective):
    """Query encoder and a momentum key encoder. The queue and its pointer are buffers, so checkpoints carry them."""

    name = "moco"
    Config = MoCoConfig
    defaults = TrainDefaults(base_lr=1.5e-4, weight_decay=0.1, warmup_epochs=40, epochs=300, batch_size=4096)

    queue_KD: Tensor
    pointer: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__(config)
        self.config: MoCoConfig = config
        if config.version == "v2":
            self.projector = projector(self.width, config.hidden, config.dim, layers=2, norm=False)
            self.predictor: nn.Module = nn.Identity()
            self.register_buffer("queue_KD", F.normalize(torch.randn(config.queue, config.dim), dim=-1))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        else:
            self.projector = projector(self.width, config.hidden, config.dim, layers=3, last_norm=True)
            self.predictor = projector(config.dim, config.hidden, config.dim, layers=2, last_norm=True)
            if config.freeze_patch_embed and hasattr(self.backbone, "patch_embed"):
                self.backbone.patch_embed.requires_grad_(False)
        self.key_backbone, self.key_projector = momentum_copy(self.backbone), momentum_copy(self.projector)

    @classmethod
    def view_plan(cls, config: MoCoConfig) -> ViewPlan:
        j = config.jitter
        crop = CropPlan(
            "image", 2, config.image_size, config.crop_scale, flip_p=config.flip, gray_p=config.gray,
            jitter=(j, j, j / 2, j / 4), blur_p=config.blur, solarize_p=config.solarize,
        )  # fmt: skip
        return ViewPlan((crop,))

    def prepare(self, total_steps: int, steps_per_epoch: int, global_batch: int) -> None:
        super().prepare(total_steps, steps_per_epoch, global_batch)
        if self.config.version == "v2" and self.config.queue % global_batch:
            nearest = max(1, round(self.config.queue / global_batch)) * global_batch
            raise UsageError(
                f"moco's queue of {self.config.queue} keys is not divisible by the global batch {global_batch}: "
                f"set queue={nearest} or another batch_size"
            )

    def train(self, mode: bool = True) -> MoCo:
        """The key network stays in eval mode: its batch norms use averaged statistics, so no batch leaks through them. Only
        v3's key projector normalises over the batch, as it has no scale of its own to average."""
        super().train(mode)
        self.key_backbone.eval()
        self.key_projector.train(mode and self.config.version == "v3")
        return self

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["image"]
        images = self.normalise(views)
        with torch.no_grad():
            key = self.key_backbone(images).unflatten(0, views.shape[:2])
        if self.config.version == "v2":  # one direction: view 0 asks, view 1 is the key
            return {"query": self.backbone(images.unflatten(0, views.shape[:2])[:, 0]).unsqueeze(1), "key": key[:, 1:]}
        return {"query": self.backbone(images).unflatten(0, views.shape[:2]), "key": key}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        # A batch norm per view, as the two views went through the network one after the other in the paper.
        query = [widen(self.predictor(self.projector(q))) for q in features["query"].unbind(1)]
        with torch.no_grad():
            key = [widen(self.key_projector(k)) for k in features["key"].unbind(1)]
        if self.config.version == "v3":
            t = self.config.temperature
            return {"loss": moco_v3_loss(query[0], key[1], t) + moco_v3_loss(query[1], key[0], t)}
        loss = moco_queue_loss(query[0], key[0], self.queue_KD.clone(), self.config.temperature)
        if self.training:
            self.enqueue(key[0])
        return {"loss": loss}

    @torch.no_grad()
    def enqueue(self, key_BD: Tensor) -> None:
        """Overwrites the oldest keys with those of all ranks, so that every rank holds the same queue."""
        key_ND = all_gather_detached(F.normalize(key_BD, dim=-1)).to(self.queue_KD.dtype)
        start = int(self.pointer)
        if start + len(key_ND) > len(self.queue_KD):
            raise UsageError(
                f"moco's queue of {len(self.queue_KD)} keys is not divisible by the global batch {len(key_ND)}"
            )
        self.queue_KD[start : start + len(key_ND)] = key_ND
        self.pointer.fill_((start + len(key_ND)) % len(self.queue_KD))

    def after_step(self) -> None:
        rising = Cosine(self.config.momentum, 1.0, self.total_steps)
        momentum = self.config.momentum if self.config.version == "v2" else rising(self.step)
        ema_update(self.key_backbone, self.backbone, momentum)
        ema_update(self.key_projector, self.projector, momentum)
