"""The decoder of MAE: light, thrown away after training, and what draws its reconstructions. He et al. 2022, section 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm_ops.pretrain.positions import sine_positions


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
