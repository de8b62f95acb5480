"""Which parameter learns how fast and decays how much: no decay on biases and norms, layer decay, patch-embedding scale."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

# What weight decay leaves out, in the ways of the authors' optimiser factories: nothing; vectors (biases, norms, scales);
# these and the position embedding and class token; these and every token and position table; all but layers' matrices.
NoDecay = Literal["nothing", "vectors", "vectors_and_positions", "vectors_and_tokens", "all_but_layers"]
_POSITIONS = {"cls_token", "pos_embed"}
_TOKENS = {"cls_token", "pos_embed", "mask_token", "reg_token"}


def layer_index(name: str, depth: int) -> int:
    """0 for embeddings, 1 .. depth for blocks (ViT) or stages (ResNet), depth + 1 for what follows. name: in the backbone."""
    block = re.match(r"(?:blocks|layers?)\.?(\d+)\.", name)
    if block:
        return int(block.group(1)) + (0 if name.startswith("layer") and not name.startswith("layers") else 1)
    return (
        0
        if re.match(
            r"(patch_embed|embeds|pos_embed|cls_token|reg_token|mask_token|conv1|bn1|norm_pre|rel_pos_bias)", name
        )
        else depth + 1
    )


def backbone_depth(backbone: nn.Module) -> int:
    """Blocks of a ViT, 4 stages of a ResNet."""
    return len(backbone.blocks) if hasattr(backbone, "blocks") else 4


def _decays(name: str, parameter: nn.Parameter, owner: nn.Module, no_decay: NoDecay, tables: set[str]) -> bool:
    """tables: names of tokens and position tables, which the authors keep as matrices and we sometimes as vectors."""
    if no_decay == "nothing":
        return True
    if no_decay == "all_but_layers":
        return isinstance(owner, nn.Linear | nn.Conv2d) and parameter.ndim > 1
    if not _named(name, tables):
        return parameter.ndim > 1
    if no_decay == "vectors_and_positions":
        return not _named(name, _POSITIONS)
    return no_decay == "vectors"


def _named(name: str, ends: set[str]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)


def param_groups(
    module: nn.Module,
    backbone: str = "backbone",
    layer_decay: float = 1.0,
    patch_embed_lr_scale: float = 1.0,
    no_decay: NoDecay = "vectors_and_tokens",
) -> list[dict]:
    """Optimiser groups with `lr_scale` and `wd_scale`, which the schedule multiplies into `lr` and `weight_decay`.

    lr_scale = layer_decay ** (depth + 1 - layer), times patch_embed_lr_scale for the patch embedding (DINOv2: 0.9 and 0.2).
    wd_scale is 0 for what `no_decay` leaves out; scalars (logit scale) count as vectors. An objective's own mask token
    belongs to the embeddings, other parameters outside the backbone count as the last layer. Frozen parameters are left
    out; each other one is in exactly one group.
    """
    trunk = module.get_submodule(backbone)
    depth = backbone_depth(trunk)
    tables = _TOKENS | set(trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ())
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix(backbone + ".")
        layer = layer_index(inner, depth) if inner != name or name == "mask_token" else depth + 1
        scale = layer_decay ** (depth + 1 - layer)
        if inner != name and inner.startswith("patch_embed"):
            scale *= patch_embed_lr_scale
        owner = module.get_submodule(name.rpartition(".")[0])
        key = (scale, float(_decays(inner, parameter, owner, no_decay, tables)))
        group = groups.setdefault(key, {"params": [], "names": [], "lr_scale": key[0], "wd_scale": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
