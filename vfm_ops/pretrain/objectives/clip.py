"""CLIP: images and captions that belong together, by a softmax over the global batch. Radford et al. 2021."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.image_text import ImageText, ImageTextConfig
from vfm_ops.pretrain.load import load_projection
from vfm_ops.pretrain.losses.info_nce import info_nce
from vfm_ops.pretrain.presets import PAIR, PAIRED, Preset
from vfm_ops.pretrain.recipe import Default, Recipe, official
from vfm_ops.pretrain.registry import register

MAX_LOG_SCALE = math.log(100)


_PARAMS = "mlfoundations/open_clip src/open_clip_train/params.py"
_MODEL = "mlfoundations/open_clip src/open_clip/model.py"
_PAPER = "Radford et al. 2021, tables 18 and 19"


def _recipe(name: str, network: str, backbone: Default, betas: tuple[float, float], eps: float) -> Recipe:
    model: dict[str, Default] = {
        "backbone": backbone,
        **official(
            "mlfoundations/open_clip src/open_clip/model_configs/ViT-B-32.json", vocabulary=49408, text_length=77
        ),
        **official("mlfoundations/open_clip src/open_clip/model_configs/ViT-B-32.json", text_width=512, text_depth=12),
        **official("mlfoundations/open_clip src/open_clip/model_configs/ViT-B-32.json", text_heads=8, dim=512),
        **official("mlfoundations/open_clip src/open_clip/transform.py", crop_scale=(0.9, 1.0), flip=0.0),
        **official("mlfoundations/open_clip src/open_clip/transform.py", interpolation="bicubic"),
        **official(f"{_MODEL} (init_logit_scale)", temperature=0.07),
        **official(f"{_MODEL} (patch dropout and stochastic depth are off)", drop_path=0.0),
        **official(f"{_PARAMS} (--local-loss --gather-with-grad)", exchange="local"),
    }
    training = {
        **official(_PARAMS, optimizer="adamw", base_lr=5e-4, betas=betas, eps=eps, weight_decay=0.2, epochs=32),
        **official(_PARAMS, clip_grad=None),
        **official(_PAPER, batch_size=32768, warmup_steps=2000),
        **official("mlfoundations/open_clip src/open_clip_train/scheduler.py", min_lr=0.0, lr_scaling="none"),
        **official("mlfoundations/open_clip src/open_clip_train/main.py (exclude)", no_decay="vectors"),
    }
    built = {
        **official("mlfoundations/open_clip src/open_clip_train/train.py", logit_scale="clamped to [0, ln 100]"),
    }
    return Recipe(name, {"network": network}, model, training, built)


RECIPES = (
    _recipe("a ViT", "vit", Default("vit_base_patch32_clip_224", _PAPER), (0.9, 0.98), 1e-6),
    _recipe("a ResNet", "convnet", Default("resnet50", _PAPER), (0.9, 0.999), 1e-8),
)


SMALL = Preset(PAIR, PAIRED)


class CLIPConfig(ImageTextConfig):
    recipes = RECIPES

    exchange: Literal["local", "global"] = Field(description="logits per rank: its own rows and columns, or all")
    temperature: float = Field(gt=0, description="at the start; the logit scale is exp(ln(1 / temperature))")


@register
class CLIP(ImageText):
    """The logit scale is learnt as its logarithm and clamped to [0, ln 100] after each step (section 2.5)."""

    name = "clip"
    small = SMALL
    Config = CLIPConfig
    text_family = "clip"
    image_processor = "CLIPImageProcessor"

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

    def transformers_model(self, backbone: nn.Module, settings: dict[str, Any]) -> Any:
        """CLIPModel. UsageError for a backbone that is laid out otherwise."""
        import transformers as tf

        if isinstance(backbone.norm_pre, nn.Identity):
            raise UsageError(
                "transformers' CLIP wants a norm before the blocks: use a vit_*_clip_* backbone, or export as timm"
            )
        text = self.text.config.to_dict()
        return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=settings, projection_dim=self.config.dim))

    def fill_transformers(self, model: Any) -> None:
        """The text tower, both projections, the logit scale."""
        super().fill_transformers(model)
        model.text_projection.load_state_dict({"weight": self.text.state_dict()["text_projection.weight"]})
        model.visual_projection.load_state_dict(self.projection.state_dict())
