"""Backbones by timm name (ViT, NaFlexViT, ResNet, ...) at any image size and channels, and their token-level forwards.

Masked objectives need a forward of a ViT that timm does not offer: with mask tokens (BEiT, iBOT), and over visible patches
only (MAE). Both go through the model's own patch embedding, position embedding and blocks, so weights stay timm's.
Names: B batch, L patches, P prefix tokens (class, registers), D width.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vfm_ops.errors import UsageError


def build_backbone(
    name: str, image_size: int = 224, channels: int = 3, model_args: dict[str, Any] | None = None
) -> nn.Module:
    """A randomly initialised timm model without classifier: images (B, C, H, W) -> features (B, backbone.num_features).

    model_args: timm's own (patch_size, embed_dim, depth, global_pool, drop_path_rate, channels of a ResNet ...). ViTs take
    other sizes than image_size at forward (multi-crop). Raises UsageError for a name that timm does not know.
    """
    import timm

    name = name.removeprefix("timm:")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5) or [
            "vit_small_patch16_224",
            "resnet50",
        ]
        raise UsageError(f"unknown backbone '{name}': timm has no such model; did you mean {', '.join(near)}?")
    base = name.split(".")[0]
    args = {"in_chans": channels, "num_classes": 0, **(model_args or {})}
    if base.startswith(("vit_", "deit")):
        args = {"img_size": image_size, "dynamic_img_size": True, **args}
    elif base.startswith("beit"):
        args = {"img_size": image_size, **args}
    try:
        return timm.create_model(base, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(f"backbone '{name}' can't be built with {args}: {error}") from error


def is_vit(backbone: nn.Module) -> bool:
    """Whether the token-level forwards below work on it: timm's VisionTransformer and Beit."""
    from timm.models.beit import Beit
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(backbone, VisionTransformer | Beit)


def require_vit(backbone: nn.Module, objective: str) -> None:
    """Raises UsageError when the objective masks patches and the backbone is no ViT."""
    if not is_vit(backbone):
        kind = type(backbone).__name__
        raise UsageError(
            f"objective '{objective}' masks patches and needs a ViT backbone, not {kind}; try vit_base_patch16_224"
        )


def patch_size(backbone: nn.Module) -> int:
    """Side of a (square) patch in pixels."""
    return backbone.patch_embed.patch_size[0]


def grid_size(backbone: nn.Module) -> tuple[int, int]:
    """Patches down and across at the size that the backbone was built for."""
    return tuple(backbone.patch_embed.grid_size)


def embed_patches(
    backbone: nn.Module, images: Tensor, mask_BL: Tensor | None = None, token_D: Tensor | None = None
) -> Tensor:
    """Patch embeddings with positions, class and register tokens: (B, P + L, D). Masked patches show `token_D` instead.

    The mask token replaces the patch before positions are added, so that it still knows where it is.
    """
    x = backbone.patch_embed(images)
    if mask_BL is not None and token_D is not None:
        mask = mask_BL.reshape(*x.shape[:-1], 1)
        x = torch.where(mask, token_D.to(x.dtype), x)
    if hasattr(backbone, "_pos_embed"):
        return backbone._pos_embed(x)
    x = torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], dim=1)  # Beit
    return backbone.pos_drop(x if backbone.pos_embed is None else x + backbone.pos_embed)


def run_blocks(backbone: nn.Module, x_BTD: Tensor) -> Tensor:
    """Transformer blocks and the final norm over any tokens: (B, T, D) -> (B, T, D)."""
    from torch.utils.checkpoint import checkpoint

    shared: dict[str, Any] = {}
    if getattr(backbone, "rel_pos_bias", None) is not None:
        shared["shared_rel_pos_bias"] = backbone.rel_pos_bias()
    x_BTD = getattr(backbone, "norm_pre", nn.Identity())(x_BTD)
    for block in backbone.blocks:
        if backbone.grad_checkpointing and torch.is_grad_enabled():
            x_BTD = checkpoint(block, x_BTD, use_reentrant=False, **shared)
        else:
            x_BTD = block(x_BTD, **shared)
    return backbone.norm(x_BTD)


def masked_tokens(
    backbone: nn.Module, images: Tensor, mask_BL: Tensor | None = None, token_D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All tokens, masked patches shown as the mask token: (prefix (B, P, D), patches (B, L, D)), after the final norm."""
    x = run_blocks(backbone, embed_patches(backbone, images, mask_BL, token_D))
    prefix = backbone.num_prefix_tokens if hasattr(backbone, "num_prefix_tokens") else 1
    return x[:, :prefix], x[:, prefix:]


def visible_tokens(backbone: nn.Module, images: Tensor, visible_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder over visible patches only: (prefix (B, P, D), visible patches (B, V, D)). visible_BV: their indices.

    Hidden patches are dropped before the first block: at 75 % masking a quarter of the tokens is computed (MAE, section 3).
    """
    x = embed_patches(backbone, images)
    prefix = backbone.num_prefix_tokens
    index = visible_BV.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    x = run_blocks(backbone, torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1))
    return x[:, :prefix], x[:, prefix:]


def check_patch(backbone: nn.Module, patch: int, objective: str) -> None:
    """UsageError when masks would be drawn on another grid than the backbone's."""
    if patch_size(backbone) != patch:
        raise UsageError(f"{objective}: patch={patch} but the backbone's patches are {patch_size(backbone)} px")


def set_drop_path(backbone: nn.Module, rate: float, uniform: bool = False) -> None:
    """Stochastic depth (Huang et al. 2016) of a ViT's blocks: from 0 at the first block to `rate` at the last, or `rate` at
    every one. UsageError for a network without such blocks."""
    from timm.layers import DropPath

    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(blocks[0], "drop_path1"):
        raise UsageError(
            f"{type(backbone).__name__} has no transformer blocks to drop: set drop_path=0, and what timm knows of this "
            "network's stochastic depth in backbone_args"
        )
    for i, block in enumerate(blocks):
        share = rate if uniform else rate * i / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(share) if share else nn.Identity())


def set_grad_checkpointing(backbone: nn.Module, enabled: bool = True) -> None:
    """Recompute blocks in the backward pass instead of keeping activations. UsageError where timm can't."""
    method = getattr(backbone, "set_grad_checkpointing", None)
    if method is None or not inspect.ismethod(method):
        raise UsageError(f"{type(backbone).__name__} has no gradient checkpointing; leave it off")
    method(enabled)
