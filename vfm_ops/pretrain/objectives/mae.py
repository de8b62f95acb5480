"""MAE: reconstruct the pixels of three quarters of the patches from the rest. He et al. 2022."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.backbones import check_patch, grid_size, patch_size, require_vit, visible_tokens
from vfm_ops.pretrain.losses.mae import mae_loss, patch_statistics, patchify, unpatchify
from vfm_ops.pretrain.mae_decoder import MAEDecoder
from vfm_ops.pretrain.mae_layout import decoder_to_transformers
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.positions import fix_positions, init_xavier
from vfm_ops.pretrain.presets import FINE, PIXELS, TRAINING, VIT, Preset
from vfm_ops.pretrain.recipe import Recipe, official
from vfm_ops.pretrain.registry import register

_MAIN = "facebookresearch/mae main_pretrain.py"
_MODELS = "facebookresearch/mae models_mae.py"
_COMMAND = "facebookresearch/mae PRETRAIN.md"

RECIPES = (
    Recipe(
        "a ViT",
        model=official(_MAIN, backbone="vit_large_patch16_224", crop_scale=(0.2, 1.0), interpolation="bicubic")
        | official(_COMMAND, mask_ratio=0.75, norm_pix_loss=True)
        | official(_MODELS, patch=16, decoder_dim=512, decoder_depth=8, decoder_heads=16, drop_path=0.0, fixed_positions=True),
        training=official(_COMMAND, base_lr=1.5e-4, weight_decay=0.05, warmup_epochs=40, epochs=800, batch_size=4096)
        | official(_MAIN, optimizer="adamw", lr_scaling="linear256", betas=(0.9, 0.95), min_lr=0.0)
        | official(f"{_MAIN} (timm's add_weight_decay)", no_decay="vectors")
        | official("facebookresearch/mae engine_pretrain.py", clip_grad=None),
        built=official(
            _MODELS, positions="fixed sine-cosine", decoder_positions="fixed sine-cosine", weights="Xavier uniform",
        ),
    ),
)  # fmt: skip


SMALL = Preset(
    {**PIXELS, **VIT, "backbone_args": FINE, "patch": 4, "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2,
     "crop_scale": (0.5, 1.0)},
    {**TRAINING, "epochs": 2},
)  # fmt: skip


class MAEConfig(ObjectiveConfig):
    recipes = RECIPES

    patch: int = Field(gt=0, description="patch side in pixels, as the backbone has it")
    mask_ratio: float = Field(gt=0, lt=1, description="share of patches hidden from the encoder")
    fixed_positions: bool = Field(description="the encoder's positions are sine-cosine and do not learn")
    decoder_dim: int = Field(gt=0, description="width of the decoder")
    decoder_depth: int = Field(gt=0, description="blocks of the decoder")
    decoder_heads: int = Field(gt=0, description="attention heads of the decoder")
    norm_pix_loss: bool = Field(description="regress pixels normalised by their patch's mean and deviation")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")


@register
class MAE(Objective):
    """The backbone encodes visible patches only; a light decoder sees their tokens and a mask token elsewhere."""

    name = "mae"
    small = SMALL
    Config = MAEConfig
    batch_coupled = False
    knn_gate = False
    drawing = "reconstruction"

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.config: MAEConfig = config
        require_vit(self.backbone, self.name)
        self.patch = patch_size(self.backbone)
        check_patch(self.backbone, config.patch, self.name)
        patches = grid_size(self.backbone)[0] * grid_size(self.backbone)[1]
        self.decoder = MAEDecoder(
            self.width, config.decoder_dim, config.decoder_depth, config.decoder_heads, patches,
            self.patch**2 * config.channels, self.backbone.num_prefix_tokens,
        )  # fmt: skip
        if not config.weights:
            init_xavier(self.backbone)
        init_xavier(self.decoder)
        if config.fixed_positions:
            fix_positions(self.backbone, write=not config.weights)

    @classmethod
    def view_plan(cls, config: MAEConfig) -> ViewPlan:
        side = config.image_size // config.patch
        crop = CropPlan(
            "image", 1, config.image_size, config.crop_scale, flip_p=config.flip, interpolation=config.interpolation
        )
        return ViewPlan((crop,), (MaskPlan("mask", (side, side), "uniform", ratio=config.mask_ratio),))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images, mask_BL = self.normalise(batch["image"]), batch["mask"]
        order_BL = torch.argsort(mask_BL.to(torch.uint8), dim=1, stable=True)  # visible patches first
        visible_BV = order_BL[:, : mask_BL.shape[1] - int(mask_BL[0].sum())]
        prefix, visible = visible_tokens(self.backbone, images, visible_BV)
        tokens = torch.cat([prefix, visible], dim=1)
        return {"tokens": tokens, "visible": visible_BV, "mask": mask_BL, "target": patchify(images, self.patch)}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        predicted = self.decoder(features["tokens"], features["visible"])
        target = features["target"]
        return {"loss": mae_loss(predicted.to(target.dtype), target, features["mask"], self.config.norm_pix_loss)}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Images (B, H, W, C), uint8, in which masked patches are the decoder's, un-normalised to the pixels' scale."""
        features = self.encode(batch)
        target = features["target"]
        predicted = self.decoder(features["tokens"], features["visible"]).to(target.dtype)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            predicted = predicted * std + mean
        drawn = torch.where(features["mask"].unsqueeze(-1), predicted, target)
        height, width = batch["image"].shape[-3:-1]
        pixels = unpatchify(drawn, self.patch, height, width) * self.pixel_std + self.pixel_mean
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def transformers_model(self, backbone: nn.Module, settings: dict[str, Any]) -> Any:
        """ViTMAEForPreTraining, with its decoder."""
        import transformers as tf

        c = self.config
        decoder = {
            "decoder_hidden_size": c.decoder_dim, "decoder_num_hidden_layers": c.decoder_depth,
            "decoder_num_attention_heads": c.decoder_heads, "decoder_intermediate_size": 4 * c.decoder_dim,
        }  # fmt: skip
        return tf.ViTMAEForPreTraining(
            tf.ViTMAEConfig(**settings, **decoder, mask_ratio=c.mask_ratio, norm_pix_loss=c.norm_pix_loss)
        )

    def fill_transformers(self, model: Any) -> None:
        """The decoder."""
        decoder_to_transformers(self.decoder, model)
