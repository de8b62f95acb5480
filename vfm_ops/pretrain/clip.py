"""CLIP: images and captions that belong together, by a softmax over the global batch. Radford et al. 2021."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.image_text import ImageText, ImageTextConfig
from vfm_ops.pretrain.load import load_projection
from vfm_ops.pretrain.losses.info_nce import info_nce
from vfm_ops.pretrain.objective import TrainDefaults

MAX_LOG_SCALE = math.log(100)


class CLIPConfig(ImageTextConfig):
    backbone: str = Field("vit_base_patch32_clip_224", description="timm model name")
    exchange: Literal["local", "global"] = Field(
        "local", description="logits per rank: its own rows and columns, or all"
    )
    temperature: float = Field(0.07, gt=0, description="at the start; the logit scale is exp(ln(1 / temperature))")


class CLIP(ImageText):
    """The logit scale is learnt as its logarithm and clamped to [0, ln 100] after each step (section 2.5)."""

    name = "clip"
    Config = CLIPConfig
    text_family = "clip"
    defaults = TrainDefaults(
        base_lr=5e-4,
        lr_scaling="none",
        betas=(0.9, 0.98),
        weight_decay=0.2,
        warmup_epochs=1,
        epochs=32,
        batch_size=32768,
    )

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.config: CLIPConfig = config
        if config.weights and (weight := load_projection(config.weights)) is not None and len(weight) == config.dim:
            self.projection.load_state_dict({"weight": weight})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = self.logit_scale.exp()
        loss = info_nce(features["image"], features["text"], scale, self.config.exchange)
        return {"loss": loss, "logit_scale": scale.detach()}

    @torch.no_grad()
    def after_step(self) -> None:
        self.logit_scale.clamp_(0, MAX_LOG_SCALE)
