"""Which parameter learns how fast and decays how much: no decay on biases and norms, layer decay, patch-embedding scale."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn


def layer_index(name: str, depth: int) -> int:
    """0 for embeddings, 1 .. depth for blocks (ViT) or stages (ResNet), depth + 1 for what follows. name: in the backbone."""
    block = re.match(r"(?:blocks|layers?)\.?(\d+)\.", name)
    if block:
        return int(block.group(1)) + (0 if name.startswith("layer") and not name.startswith("layers") else 1)
    return (
        0
        if re.match(r"(patch_embed|embeds|pos_embed|cls_token|reg_token|conv1|bn1|norm_pre|rel_pos_bias)", name)
        else depth + 1
    )


def backbone_depth(backbone: nn.Module) -> int:
    """Blocks of a ViT, 4 stages of a ResNet."""
    return len(backbone.blocks) if hasattr(backbone, "blocks") else 4


def _decays(name: str, parameter: nn.Parameter, exempt: Iterable[str]) -> bool:
    return parameter.ndim > 1 and not any(name == e or name.endswith("." + e) for e in exempt)


def param_groups(
    module: nn.Module, backbone: str = "backbone", layer_decay: float = 1.0, patch_embed_lr_scale: float = 1.0
) -> list[dict]:
    """Optimiser groups with `lr_scale` and `wd_scale`, which the schedule multiplies into `lr` and `weight_decay`.

    lr_scale = layer_decay ** (depth + 1 - layer), times patch_embed_lr_scale for the patch embedding (DINOv2: 0.9 and 0.2).
    wd_scale is 0 for biases, norms and other vectors, position and class tokens, scalars (logit scale). Parameters
    outside the backbone count as the last layer. Frozen parameters are left out; each other one is in exactly one group.
    """
    trunk = module.get_submodule(backbone)
    depth = backbone_depth(trunk)
    exempt = set(trunk.no_weight_decay()) if hasattr(trunk, "no_weight_decay") else set()
    exempt |= {"cls_token", "pos_embed", "mask_token", "reg_token", "logit_scale", "logit_bias"}
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix(backbone + ".")
        layer = layer_index(inner, depth) if inner != name else depth + 1
        scale = layer_decay ** (depth + 1 - layer)
        if inner != name and inner.startswith("patch_embed"):
            scale *= patch_embed_lr_scale
        key = (scale, float(_decays(inner, parameter, exempt)))
        group = groups.setdefault(key, {"params": [], "names": [], "lr_scale": key[0], "wd_scale": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
