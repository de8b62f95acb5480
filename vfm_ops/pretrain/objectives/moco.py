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
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.positions import fix_positions, init_xavier
from vfm_ops.pretrain.presets import CONTRASTIVE, NO_BLUR, RESNET, Preset
from vfm_ops.pretrain.recipe import Default, Recipe, official
from vfm_ops.pretrain.registry import register
from vfm_ops.pretrain.schedules import Cosine

_V2 = "facebookresearch/moco main_moco.py"
_V2_BUILDER = "facebookresearch/moco moco/builder.py"
_V2_FLAGS = "facebookresearch/moco README.md (--mlp --moco-t 0.2 --aug-plus --cos)"
_V3 = "facebookresearch/moco-v3 main_moco.py"
_V3_BUILDER = "facebookresearch/moco-v3 moco/builder.py"
_V3_CONFIG = "facebookresearch/moco-v3 CONFIG.md"
_VITS = "facebookresearch/moco-v3 vits.py"
_AVERAGED = (
    "Keys are encoded with averaged batch statistics (EMAN, Cai et al. 2021), so that no statistic of the batch leaks to "
    "them; the authors shuffle the batch between GPUs for that (v2), or normalise over the whole batch (v3)."
)


def _v3(**crop: Default) -> dict[str, Default]:
    """What both networks of v3 share."""
    return {
        **official(_V3, dim=256, hidden=4096, momentum=0.99, drop_path=0.0, interpolation="bilinear"),
        **official(_V3, jitter=0.4, saturation=0.5, gray=0.2, blur=(1.0, 0.1), solarize=(0.0, 0.2)),
        **official("none: v3 has no queue", queue=65536),
        **crop,
    }


RECIPES = (
    Recipe(
        "v3 with a ViT",
        {"version": "v3", "network": "vit"},
        model=_v3(**official(f"{_V3} (--crop-min)", crop_scale=(0.08, 1.0)))
        | official(_V3_CONFIG, version="v3", backbone="vit_base_patch16_224", temperature=0.2, freeze_patch_embed=True)
        | official(_V3_BUILDER, projector_layers=3, predictor_norm=True)
        | official(_VITS, fixed_positions=True),
        training=official(
            _V3_CONFIG, optimizer="adamw", base_lr=1.5e-4, weight_decay=0.1, warmup_epochs=40, epochs=300, batch_size=4096,
        )
        | official(_V3, lr_scaling="linear256", betas=(0.9, 0.999), min_lr=0.0, no_decay="nothing", clip_grad=None),
        built=official(
            _V3_BUILDER, projector="linear-norm-relu-linear-norm-relu-linear-norm", predictor="linear-norm-relu-linear-norm",
            last_norm="no scale, no offset",
        )
        | official(f"{_V3_CONFIG} (--moco-m-cos)", key_momentum="rises to 1 by a cosine")
        | official(_VITS, positions="fixed sine-cosine", weights="Xavier uniform, query, key and value apart"),
        differs=(_AVERAGED, "timm's ViT-S has 6 attention heads, the authors' 12: set backbone_args.num_heads=12 for it."),
    ),
    Recipe(
        "v3 with a ResNet",
        {"version": "v3", "network": "convnet"},
        model=_v3(**official(_V3_CONFIG, crop_scale=(0.2, 1.0)))
        | official(_V3, version="v3", backbone="resnet50", temperature=1.0, freeze_patch_embed=False)
        | official(_V3_BUILDER, projector_layers=2, predictor_norm=False)
        | official("none: a ResNet has no position embedding", fixed_positions=False),
        training=official(
            _V3, optimizer="lars", base_lr=0.6, lr_scaling="linear256", weight_decay=1e-6, sgd_momentum=0.9, warmup_epochs=10,
            epochs=100, batch_size=4096, min_lr=0.0, clip_grad=None,
        )
        | official("facebookresearch/moco-v3 moco/optimizer.py", no_decay="vectors"),
        built=official(
            _V3_BUILDER, projector="linear-norm-relu-linear-norm", predictor="linear-norm-relu-linear",
            last_norm="no scale, no offset",
        )
        | official(f"{_V3_CONFIG} (--moco-m-cos)", key_momentum="rises to 1 by a cosine")
        | official("facebookresearch/moco-v3 moco/optimizer.py", trust_coefficient=0.001),
        differs=(_AVERAGED,),
    ),
    Recipe(
        "v2",
        {"version": "v2"},
        model=official(_V2, backbone="resnet50", dim=128, queue=65536, momentum=0.999, drop_path=0.0)
        | official(_V2_FLAGS, version="v2", temperature=0.2)
        | official(f"{_V2_BUILDER} (--mlp: the width of the features, 2048 of a ResNet-50)", hidden=2048)
        | official(f"{_V2} (--aug-plus)", crop_scale=(0.2, 1.0), jitter=0.4, saturation=1.0, gray=0.2, blur=(0.5,))
        | official(f"{_V2} (--aug-plus)", solarize=(0.0,), interpolation="bilinear")
        | official(_V2_BUILDER, projector_layers=2)
        | official("none: v2 has neither", predictor_norm=False, freeze_patch_embed=False, fixed_positions=False),
        training=official(
            _V2, optimizer="sgd", base_lr=0.03, weight_decay=1e-4, sgd_momentum=0.9, warmup_epochs=0, epochs=200,
            batch_size=256, no_decay="nothing", clip_grad=None,
        )
        | official(f"{_V2} (--cos)", min_lr=0.0)
        | official("facebookresearch/moco README.md (linear lr scaling recipe)", lr_scaling="linear256"),
        built=official(
            _V2_BUILDER, projector="linear-relu-linear", predictor="none", key_momentum="constant",
        ),
        differs=(_AVERAGED,),
    ),
)  # fmt: skip


SMALL = Preset(
    {**RESNET, **NO_BLUR, "version": "v2", "dim": 64, "hidden": 256, "queue": 4096, "temperature": 0.1,
     "momentum": 0.99, "crop_scale": (0.3, 1.0), "jitter": 0.4},
    {**CONTRASTIVE, "epochs": 1.5},
)  # fmt: skip


class MoCoConfig(ObjectiveConfig):
    recipes = RECIPES

    version: Literal["v2", "v3"] = Field(description="v2: queue; v3: the batch is its own dictionary")
    dim: int = Field(gt=0, description="width of the compared vectors")
    hidden: int = Field(gt=0, description="hidden width of the heads")
    projector_layers: int = Field(gt=0, description="linear layers of the projection head")
    predictor_norm: bool = Field(description="v3: batch norm after the prediction head's last layer")
    queue: int = Field(gt=0, description="v2: number of keys remembered, a multiple of the global batch")
    temperature: float = Field(gt=0, description="of the softmax over keys")
    momentum: float = Field(ge=0, lt=1, description="of the key encoder; constant in v2, rising to 1 in v3")
    freeze_patch_embed: bool = Field(description="v3 with a ViT: the patch embedding stays random (section 4.2)")
    fixed_positions: bool = Field(description="v3 with a ViT: sine-cosine positions that do not learn")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")
    jitter: float = Field(ge=0, description="strength of brightness and contrast jitter; a quarter of it is hue's")
    saturation: float = Field(ge=0, description="of jitter's strength, the share that saturation gets")
    gray: float = Field(ge=0, le=1, description="probability of grey")
    blur: tuple[float, ...] = Field(description="probability of blur for the two views; 0 on small images")
    solarize: tuple[float, ...] = Field(description="probability of solarising for the two views")


@register
class MoCo(Objective):
    """Query encoder and a momentum key encoder. The queue and its pointer are buffers, so checkpoints carry them."""

    name = "moco"
    small = SMALL
    Config = MoCoConfig

    queue_KD: Tensor
    pointer: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__(config)
        self.config: MoCoConfig = config
        c = config
        if c.version == "v2":
            self.projector = projector(self.width, c.hidden, c.dim, c.projector_layers, norm=False)
            self.predictor: nn.Module = nn.Identity()
            self.register_buffer("queue_KD", F.normalize(torch.randn(c.queue, c.dim), dim=-1))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        else:
            self.projector = projector(self.width, c.hidden, c.dim, c.projector_layers, last_norm=True)
            self.predictor = projector(c.dim, c.hidden, c.dim, 2, last_norm=c.predictor_norm, last_bias=False)
            self._prepare_vit()
        self.key_backbone, self.key_projector = momentum_copy(self.backbone), momentum_copy(self.projector)

    def _prepare_vit(self) -> None:
        """v3's initial weights, fixed positions and frozen patch embedding; before the key encoder is copied."""
        patches = getattr(self.backbone, "patch_embed", None)
        if patches is None:
            return
        if self.config.fixed_positions:
            if not self.config.weights:
                init_xavier(self.backbone, split_qkv=True, token_std=1e-6)
            fix_positions(self.backbone, write=not self.config.weights)
        if self.config.freeze_patch_embed:
            patches.requires_grad_(False)

    @classmethod
    def view_plan(cls, config: MoCoConfig) -> ViewPlan:
        j = config.jitter
        crop = CropPlan(
            "image", 2, config.image_size, config.crop_scale, flip_p=config.flip, gray_p=config.gray,
            jitter=(j, j, j * config.saturation, j / 4), blur_p=config.blur, solarize_p=config.solarize,
            interpolation=config.interpolation,
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
