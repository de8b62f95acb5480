"""SigLIP: each image-caption pair is judged by itself, by a sigmoid. Zhai et al. 2023."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.image_text import ImageText, ImageTextConfig
from vfm_ops.pretrain.losses.siglip import siglip_loss
from vfm_ops.pretrain.presets import PAIR, PAIRED, Preset
from vfm_ops.pretrain.recipe import Recipe, official
from vfm_ops.pretrain.registry import register

_PAPER = "Zhai et al. 2023, section 4"
_CONFIG = "google-research/big_vision big_vision/configs/proj/image_text/siglip_lit_coco.py"
_OPEN_CLIP = "mlfoundations/open_clip src/open_clip/model_configs/ViT-B-16-SigLIP.json"

RECIPES = (
    Recipe(
        "a ViT",
        model=official(_OPEN_CLIP, backbone="vit_base_patch16_siglip_224", vocabulary=32000, text_length=64, text_width=768)
        | official(_OPEN_CLIP, text_depth=12, text_heads=12, dim=768, interpolation="bicubic", drop_path=0.0)
        | official(_OPEN_CLIP, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        | official("mlfoundations/open_clip src/open_clip/transform.py", crop_scale=(0.9, 1.0), flip=0.0)
        | official(_CONFIG, scale=10.0)
        | official("Zhai et al. 2023, section 3.2", bias=-10.0)
        | official("Zhai et al. 2023, section 3.3", exchange="ring")
        | official("ours: the loss is the same for any", chunk=1024),
        training=official(_CONFIG, base_lr=1e-3, clip_grad=1.0)
        | official(_PAPER, weight_decay=1e-4, betas=(0.9, 0.95), batch_size=32768)
        | official("google-research/big_vision big_vision/optax.py (global norm)", clip_by="all")
        | official("google-research/big_vision big_vision/optax.py (wd_mults: kernels)", no_decay="all_but_layers")
        | official("google-research/big_vision big_vision/utils.py (cosine)", min_lr=0.0, lr_scaling="none")
        | official("ours: the authors count seen examples", warmup_epochs=1, epochs=32)
        | official("mlfoundations/open_clip src/open_clip_train/params.py", optimizer="adamw"),
        differs=("AdamW, as open_clip trains it, stands for the authors' Adafactor with momentum.",),
    ),
)  # fmt: skip


SMALL = Preset({**PAIR, "bias": None}, PAIRED)


class SigLIPConfig(ImageTextConfig):
    recipes = RECIPES

    exchange: Literal["ring", "gather"] = Field(description="ring: b x chunk logits whatever the world size")
    chunk: int = Field(gt=0, description="texts a block of logits holds at most")
    scale: float = Field(gt=0, description="logit scale at the start, exp(t')")
    bias: float | None = Field(
        description="logit bias at the start; -10 suits batches of 22k, null takes -ln(B - 1) for small ones"
    )


@register
class SigLIP(ImageText):
    """The bias starts where most pairs, which do not belong together, cost little: at -10, or at -ln(B - 1) on request."""

    name = "siglip"
    small = SMALL
    Config = SigLIPConfig
    text_family = "siglip"
    image_processor = "SiglipImageProcessor"

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

    def transformers_model(self, backbone: nn.Module, settings: dict[str, Any]) -> Any:
        """SiglipModel. UsageError where the shared space is not the backbone's own."""
        import transformers as tf

        if not isinstance(self.projection, nn.Identity):
            raise UsageError(
                "transformers' SigLIP has no image projection: use a vit_*_siglip_* backbone with dim equal to its width, "
                "or export as timm"
            )
        return tf.SiglipModel(tf.SiglipConfig(text_config=self.text.config.to_dict(), vision_config=settings))

    def fill_transformers(self, model: Any) -> None:
        """The text tower, the logit scale and bias."""
        super().fill_transformers(model)
        model.logit_bias.copy_(self.logit_bias)
