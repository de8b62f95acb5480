"""SigLIP: each image-caption pair is judged by itself, by a sigmoid. Zhai et al. 2023."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.image_text import ImageText, ImageTextConfig
from vfm_ops.pretrain.losses.siglip import siglip_loss
from vfm_ops.pretrain.objective import TrainDefaults


class SigLIPConfig(ImageTextConfig):
    backbone: str = Field("vit_base_patch16_siglip_224", description="timm model name")
    mean: tuple[float, ...] = Field((0.5, 0.5, 0.5), description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.5, 0.5, 0.5), description="per channel, of pixels in [0, 1]")
    vocabulary: int = Field(32000, gt=4, description="tokens of a new text tower")
    text_length: int = Field(64, gt=2, description="tokens a caption is cut or padded to")
    text_width: int = Field(768, gt=0, description="width of a new text tower")
    text_heads: int = Field(12, gt=0, description="attention heads of a new text tower")
    dim: int = Field(768, gt=0, description="width of the shared space; the image tower's width, when it is published")
    exchange: Literal["ring", "gather"] = Field("ring", description="ring: b x chunk logits whatever the world size")
    chunk: int = Field(1024, gt=0, description="texts a block of logits holds at most")
    scale: float = Field(10.0, gt=0, description="logit scale at the start, exp(t')")
    bias: float | None = Field(
        -10.0, description="logit bias at the start; suits batches of 22k: null takes -ln(B - 1)"
    )


class SigLIP(ImageText):
    """The bias starts where most pairs, which do not belong together, cost little: at -10, or at -ln(B - 1) on request."""

    name = "siglip"
    Config = SigLIPConfig
    text_family = "siglip"
    defaults = TrainDefaults(
        base_lr=1e-3,
        lr_scaling="none",
        betas=(0.9, 0.95),
        weight_decay=1e-4,
        warmup_epochs=1,
        epochs=32,
        batch_size=32768,
    )

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__(config)
        self.config: SigLIPConfig = config
        if getattr(self.backbone, "attn_pool", None) is not None and self.width == config.dim:
            self.projection = nn.Identity()  # as published: the pooled width is the shared space
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0 if config.bias is None else config.bias))

    def prepare(self, total_steps: int, steps_per_epoch: int, global_batch: int) -> None:
        super().prepare(total_steps, steps_per_epoch, global_batch)
        if self.config.bias is None:
            self.logit_bias.data.fill_(-math.log(max(2, global_batch - 1)))

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        c, scale = self.config, self.logit_scale.exp()
        loss = siglip_loss(features["image"], features["text"], scale, self.logit_bias, c.exchange, c.chunk)
        return {"loss": loss, "logit_scale": scale.detach(), "logit_bias": self.logit_bias.detach().clone()}
