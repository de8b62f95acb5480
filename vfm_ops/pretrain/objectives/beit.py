"""BEiT: predict the visual tokens of masked blocks of patches. Bao et al. 2022."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.backbones import check_patch, masked_tokens, require_vit
from vfm_ops.pretrain.losses.beit import beit_loss
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.presets import FINE, PIXELS, TRAINING, VIT, Preset
from vfm_ops.pretrain.recipe import Default, Recipe, official
from vfm_ops.pretrain.registry import register
from vfm_ops.pretrain.vq import PatchVQ

_RUN = "microsoft/unilm beit/run_beit_pretraining.py"
_COMMAND = "microsoft/unilm beit/README.md (pre-training BEiT-base on ImageNet-1k)"
_OURS = "ours: the authors take DALL-E's tokenizer"


def _recipe(size: str, backbone: str, layer_scale: float) -> Recipe:
    model: dict[str, Default] = {
        **official("microsoft/unilm beit/modeling_pretrain.py", backbone=backbone, patch=16, vocabulary=8192),
        **official(_RUN, masked=75, min_block=16, drop_path=0.1, interpolation="bicubic", shared_position_bias=True),
        **official(_RUN, layer_scale=layer_scale),
        **official("microsoft/unilm beit/datasets.py", jitter=0.4, jitter_probability=1.0),
        **official("microsoft/unilm beit/transforms.py", crop_scale=(0.08, 1.0)),
        **official(_OURS, tokenizer_dim=32, tokenizer_hidden=256, tokenizer_share=0.1),
    }
    training = {
        **official(_RUN, optimizer="adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, min_lr=1e-5),
        **official(f"{_RUN} (the learning rate is not scaled)", lr_scaling="none"),
        **official(_COMMAND, base_lr=1.5e-3, warmup_epochs=10, epochs=800, batch_size=2048, clip_grad=3.0),
        **official("microsoft/unilm beit/utils.py (clip_grad_norm_ of all)", clip_by="all"),
        **official("microsoft/unilm beit/optim_factory.py", no_decay="vectors_and_positions"),
    }
    built = {
        **official("microsoft/unilm beit/modeling_pretrain.py", drop_path_schedule="linear from 0"),
        **official("microsoft/unilm beit/optim_factory.py (get_num_layer_for_vit)", mask_token_layer=0),
    }
    return Recipe(
        f"BEiT-{size}",
        {"size": size},
        model,
        training,
        built,
        (
            "Visual tokens are those of a small tokenizer that learns first, on the same images: DALL-E's weights do not ship.",
            "The position bias is shared between blocks, and layers are scaled, where the backbone is one of timm's beit_*.",
        ),
    )


RECIPES = (_recipe("base", "beit_base_patch16_224", 0.1), _recipe("large", "beit_large_patch16_224", 1e-5))


SMALL = Preset(
    {**PIXELS, **VIT, "backbone_args": FINE, "patch": 4, "masked": 24, "min_block": 4, "vocabulary": 256,
     "tokenizer_dim": 16, "tokenizer_hidden": 64, "crop_scale": (0.5, 1.0), "jitter": 0.0, "drop_path": 0.0},
    {**TRAINING, "epochs": 1},
)  # fmt: skip


class BEiTConfig(ObjectiveConfig):
    recipes = RECIPES

    patch: int = Field(gt=0, description="patch side in pixels, as the backbone has it")
    shared_position_bias: bool = Field(description="of a beit_* backbone: one relative position bias for all blocks")
    layer_scale: float = Field(ge=0, description="of a beit_* backbone: initial scale of each layer's output; 0: none")
    masked: int = Field(gt=0, description="patches masked in each image (75 of 196)")
    min_block: int = Field(gt=0, description="patches of the smallest masked rectangle")
    vocabulary: int = Field(gt=1, description="visual tokens of the tokenizer")
    tokenizer_dim: int = Field(gt=0, description="width of a code; ours, the paper takes DALL-E's tokenizer")
    tokenizer_hidden: int = Field(gt=0, description="width of the tokenizer's layers")
    tokenizer_share: float = Field(ge=0, lt=1, description="share of the steps that trains the tokenizer, first")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")
    jitter: float = Field(ge=0, description="strength of brightness, contrast and saturation jitter")
    jitter_probability: float = Field(ge=0, le=1, description="share of the images that are jittered")

    def timm_arguments(self) -> dict[str, Any]:
        """Of a beit_* backbone, position bias and layer scale."""
        if not self.backbone.removeprefix("timm:").startswith("beit"):
            return self.backbone_args
        shared = self.shared_position_bias
        bias = {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared}
        return {**bias, "init_values": self.layer_scale or None, **self.backbone_args}


@register
class BEiT(Objective):
    """First the tokenizer learns (its share of the steps), then it is frozen and the backbone predicts its ids."""

    name = "beit"
    small = SMALL
    Config = BEiTConfig
    batch_coupled = False
    knn_gate = False

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__(config)
        self.config: BEiTConfig = config
        require_vit(self.backbone, self.name)
        check_patch(self.backbone, config.patch, self.name)
        self.tokenizer = PatchVQ(
            config.patch, config.channels, config.vocabulary, config.tokenizer_dim, config.tokenizer_hidden
        )
        self.mask_token = nn.Parameter(torch.zeros(self.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.classifier = nn.Linear(self.width, config.vocabulary)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def view_plan(cls, config: BEiTConfig) -> ViewPlan:
        side, j = config.image_size // config.patch, config.jitter
        crop = CropPlan(
            "image", 1, config.image_size, config.crop_scale, flip_p=config.flip, jitter=(j, j, j, 0.0),
            jitter_p=config.jitter_probability, interpolation=config.interpolation,
        )  # fmt: skip
        mask = MaskPlan("mask", (side, side), "blockwise", count=config.masked, min_block=config.min_block)
        return ViewPlan((crop,), (mask,))

    def set_step(self, step: int) -> None:
        super().set_step(step)
        self.batch_coupled = self.learns_tokenizer  # the codebook moves once a step, by the whole batch

    @property
    def learns_tokenizer(self) -> bool:
        """Whether this step still trains the tokenizer."""
        return self.step < round(self.config.tokenizer_share * self.total_steps)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images = self.normalise(batch["image"])
        if self.learns_tokenizer:
            return {"images": images}
        self.tokenizer.eval()
        _, patches = masked_tokens(self.backbone, images, batch["mask"], self.mask_token)
        mask = batch["mask"]
        return {"patches": patches[mask], "token": self.tokenizer.tokenize(images)[mask]}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if "images" in features:
            return self.tokenizer(features["images"])
        logits_MV = widen(self.classifier(features["patches"]))
        accuracy = (logits_MV.argmax(-1) == features["token"]).float().mean()
        return {"loss": beit_loss(logits_MV, features["token"]), "token_accuracy": accuracy.detach()}
