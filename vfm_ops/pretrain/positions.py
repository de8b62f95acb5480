"""Fixed sine-cosine positions (Vaswani et al. 2017, in two dimensions), and the initial weights that go with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vfm_ops.errors import UsageError


def sine_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """2-d sine-cosine position embedding (rows * columns, dim): half the channels for columns, half for rows.

    UsageError unless dim is a multiple of 4.
    """
    if dim % 4:
        raise UsageError(f"fixed positions need a width that is a multiple of 4, not {dim}: set fixed_positions=false")
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    frequency = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    parts = [f(axis.reshape(-1, 1) * frequency) for axis in (columns, rows) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()


@torch.no_grad()
def fix_positions(backbone: nn.Module, write: bool = True) -> None:
    """A ViT's position embedding becomes the sine-cosine one, 0 at class and register tokens, and learns no more.

    write: False keeps what a published checkpoint brought. The tensor keeps its name and shape, so that checkpoints from
    before still load. A ViT without position embedding stays as it is.
    """
    table = getattr(backbone, "pos_embed", None)
    if not isinstance(table, nn.Parameter) or table.dim() != 3:
        return
    if write:
        grid = tuple(backbone.patch_embed.grid_size)
        patches = sine_positions(table.shape[-1], grid)
        table.zero_()
        table[0, table.shape[1] - len(patches) :] = patches.to(table.dtype)
    table.requires_grad_(False)


@torch.no_grad()
def init_xavier(module: nn.Module, split_qkv: bool = False, token_std: float = 0.02) -> None:
    """Xavier-uniform linear layers with biases 0, the patch embedding as the linear layer that it is.

    split_qkv: query, key and value count as three layers (MoCo v3) instead of one (MAE). token_std: of the class token.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            outputs = layer.out_features // 3 if split_qkv and name.endswith("qkv") else layer.out_features
            _uniform(layer.weight, layer.in_features, outputs)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    patches = getattr(module, "patch_embed", None)
    if patches is not None:
        _uniform(patches.proj.weight, patches.proj.weight[0].numel(), len(patches.proj.weight))
        if patches.proj.bias is not None:
            nn.init.zeros_(patches.proj.bias)
    if getattr(module, "cls_token", None) is not None:
        nn.init.normal_(module.cls_token, std=token_std)


def _uniform(weight: Tensor, inputs: int, outputs: int) -> None:
    bound = math.sqrt(6 / (inputs + outputs))
    nn.init.uniform_(weight, -bound, bound)
