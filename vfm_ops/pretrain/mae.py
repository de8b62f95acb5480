"""MAE: reconstruct the pixels of three quarters of the patches from the rest. He et al. 2022."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.backbones import grid_size, patch_size, require_vit, visible_tokens
from vfm_ops.pretrain.losses.mae import mae_loss, patch_statistics, patchify, unpatchify
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig, TrainDefaults


class MAEConfig(ObjectiveConfig):
    patch: int = Field(16, gt=0, description="patch side in pixels, as the backbone has it")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches hidden from the encoder")
    decoder_dim: int = Field(512, gt=0, description="width of the decoder")
    decoder_depth: int = Field(8, gt=0, description="blocks of the decoder")
    decoder_heads: int = Field(16, gt=0, description="attention heads of the decoder")
    norm_pix_loss: bool = Field(True, description="regress pixels normalised by their patch's mean and deviation")
    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the image that a crop takes")


class MAE(Objective):
    """The backbone encodes visible patches only; a light decoder sees their tokens and a mask token elsewhere."""

    name = "mae"
    Config = MAEConfig
    defaults = TrainDefaults(base_lr=1.5e-4, betas=(0.9, 0.95), warmup_epochs=40, epochs=800, batch_size=4096)
    batch_coupled = False
    knn_gate = False

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.config: MAEConfig = config
        require_vit(self.backbone, self.name)
        self.patch = patch_size(self.backbone)
        patches = grid_size(self.backbone)[0] * grid_size(self.backbone)[1]
        self.decoder = MAEDecoder(
            self.width, config.decoder_dim, config.decoder_depth, config.decoder_heads, patches,
            self.patch**2 * config.channels, self.backbone.num_prefix_tokens,
        )  # fmt: skip

    @classmethod
    def view_plan(cls, config: MAEConfig) -> ViewPlan:
        side = config.image_size // config.patch
        crop = CropPlan("image", 1, config.image_size, config.crop_scale, flip_p=config.flip)
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


class MAEDecoder(nn.Module):
    """Linear to the decoder's width, mask tokens, fixed sine-cosine positions, blocks, norm, linear to pixels."""

    positions: Tensor

    def __init__(self, width: int, dim: int, depth: int, heads: int, patches: int, out: int, prefix: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.prefix = prefix
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        side = round(patches**0.5)
        self.register_buffer("positions", sine_positions(dim, (side, patches // side)).unsqueeze(0))
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, out)

    def forward(self, tokens_BTD: Tensor, visible_BV: Tensor) -> Tensor:
        """tokens_BTD: prefix and visible tokens of the encoder. Returns predicted patches (B, L, patch * patch * C)."""
        x = self.embed(tokens_BTD)
        prefix, visible = x[:, : self.prefix], x[:, self.prefix :]
        full = self.mask_token.to(x.dtype).expand(len(x), self.positions.shape[1], -1)
        full = full.scatter(1, visible_BV.unsqueeze(-1).expand(-1, -1, x.shape[-1]), visible) + self.positions.to(
            x.dtype
        )
        x = torch.cat([prefix, full], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))[:, self.prefix :]


def sine_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """2-d sine-cosine position embedding (rows * columns, dim): half the channels for columns, half for rows."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    frequency = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    parts = [f(axis.reshape(-1, 1) * frequency) for axis in (columns, rows) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()
