"""timm's and transformers' names for the same ViT weights: one table, read in both directions.

For each tensor of a transformers vision model, `timm_source` says which timm tensor holds it, and which third of a fused
query-key-value it is. Loading gathers by that table, exporting scatters by it; shapes differ at most by leading ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.backbones import is_vit

# transformers model_type -> timm entry point whose arguments stand for the family.
FAMILIES = {
    "vit": "vit_base_patch16_224", "vit_mae": "vit_base_patch16_224", "dinov2": "vit_base_patch14_dinov2",
    "beit": "beit_base_patch16_224", "clip_vision_model": "vit_base_patch32_clip_224",
    "siglip_vision_model": "vit_base_patch16_siglip_224",
}  # fmt: skip

_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token", "embeddings.class_embedding": "cls_token",
    "embeddings.position_embeddings": "pos_embed", "embeddings.position_embedding.weight": "pos_embed",
}  # fmt: skip
_PREFIXES = (
    (r"embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"(?:post_)?layernorm\.", "norm."),
    (r"pooler\.layernorm\.", "fc_norm."),
    (r"shared_position_bias\.", "rel_pos_bias."),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"head\.layernorm\.", "attn_pool.norm."),
    (r"head\.mlp\.", "attn_pool.mlp."),
)
_IN_BLOCK = (
    (r"(?:attention|self_attn)\.(?:o_proj|out_proj)\.", "attn.proj."),
    (r"(?:layernorm_before|norm1|layer_norm1)\.", "norm1."),
    (r"(?:layernorm_after|norm2|layer_norm2)\.", "norm2."),
    (r"mlp\.", "mlp."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"lambda_(\d)", r"gamma_\1"),
    (r"relative_position_bias\.", "attn."),
)
_NO_OUTPUT = ("relative_position_index", "mask_token")  # of timm: computed, or for pretraining only
_THIRD = {"q": 0, "k": 1, "v": 2}


def timm_source(key: str, beit: bool = False) -> tuple[str, int | None] | None:
    """(timm key, third of the fused tensor or None) of a transformers vision key; None for tensors that timm has no place for
    (mask tokens, untrained poolers). `head.attention.in_proj_*` is handled by the callers: timm keeps query and key-value."""
    if key in _EMBEDDINGS:
        return _EMBEDDINGS[key], None
    block = re.match(r"(?:encoder\.)?layers?\.(\d+)\.(.+)", key)
    if block is None:
        for pattern, name in _PREFIXES:
            if re.match(pattern, key):
                return re.sub("^" + pattern, name, key), None
        return None
    prefix, rest = f"blocks.{block.group(1)}.", block.group(2)
    fused = re.match(r"(?:attention|self_attn)\.([qkv])_proj\.(weight|bias)", rest)
    if fused:
        letter, kind = fused.groups()
        if beit and kind == "bias":  # BEiT has no bias on keys, and timm keeps the other two apart
            return f"{prefix}attn.{letter}_bias", None
        return f"{prefix}attn.qkv.{kind}", _THIRD[letter]
    for pattern, name in _IN_BLOCK:
        if re.match(pattern, rest):
            return prefix + re.sub("^" + pattern, name, rest), None
    return None


def to_timm(vision: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], beit: bool = False) -> dict[str, Tensor]:
    """timm state dict from a transformers vision model's. shapes: of the timm model, which decide leading dimensions.

    Raises UsageError when a timm tensor stays without a source or has another number of elements.
    """
    out: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for key, value in vision.items():
        if key.startswith("head.attention.in_proj_"):
            kind = key.removeprefix("head.attention.in_proj_")
            width = len(value) // 3
            out[f"attn_pool.q.{kind}"], out[f"attn_pool.kv.{kind}"] = value[:width], value[width:]
            continue
        source = timm_source(key, beit)
        if source is None:
            continue
        name, third = source
        if third is None:
            out[name] = value
        else:
            thirds.setdefault(name, {})[third] = value
    out |= {name: torch.cat([parts[i] for i in range(3)]) for name, parts in thirds.items()}
    missing = [name for name in shapes if name not in out]
    if missing:
        raise UsageError(
            f"the checkpoint lacks {len(missing)} tensors of the backbone, {missing[0]} first: another architecture?"
        )
    wrong = [name for name in shapes if out[name].numel() != shapes[name].numel()]
    if wrong:
        raise UsageError(
            f"tensor {wrong[0]} is {tuple(out[wrong[0]].shape)}, the backbone wants {tuple(shapes[wrong[0]])}"
        )
    return {name: out[name].reshape(shape) for name, shape in shapes.items()}


def from_timm(
    timm_state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], beit: bool = False
) -> dict[str, Tensor]:
    """The tensors of a transformers vision model that a timm state dict holds, in the shapes that transformers wants.

    A layer scale that the backbone lacks is 1. What timm has no place for is left out, for the caller to keep as it is.
    UsageError for a tensor of another form, and for one that transformers has no place for: its outputs would differ.
    """
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, shape in shapes.items():
        if key.startswith("head.attention.in_proj_"):
            kind = key.removeprefix("head.attention.in_proj_")
            query, rest = f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"
            out[key] = torch.cat([timm_state[query], timm_state[rest]])
            used |= {query, rest}
            continue
        source = timm_source(key, beit)
        if source is None:
            continue
        name, third = source
        if name.endswith((".ls1.gamma", ".ls2.gamma")) and name not in timm_state:
            out[key] = torch.ones(shape)
            continue
        if name not in timm_state:
            raise UsageError(f"this backbone has no {name}, which transformers' {key} needs: export it as timm instead")
        value = timm_state[name] if third is None else timm_state[name].chunk(3)[third]
        if value.numel() != shape.numel():
            raise UsageError(
                f"{name} is {tuple(value.shape)}, transformers' {key} wants {tuple(shape)}: export it as timm"
            )
        out[key] = value.reshape(shape).contiguous()
        used.add(name)
    left = [key for key in timm_state if key not in used and not key.endswith(_NO_OUTPUT)]
    if left:
        raise UsageError(f"transformers' model has no place for the backbone's {left[0]}: export it as timm instead")
    return out


_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_CLASSES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh", "ReLU": "relu"}


def timm_arguments(config: Any) -> tuple[str, dict[str, Any]]:
    """(timm entry point, arguments) for a transformers vision config. UsageError for a family that timm's table lacks."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise UsageError(
            f"backbones of type '{kind}' can't be loaded from a transformers directory; known: {', '.join(FAMILIES)}"
        )
    act = getattr(config, "hidden_act", "gelu")
    inner = getattr(config, "intermediate_size", None)
    args = {
        "img_size": config.image_size, "patch_size": config.patch_size, "in_chans": config.num_channels, "num_classes": 0,
        "embed_dim": config.hidden_size, "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads,
        "mlp_ratio": inner / config.hidden_size if kind != "dinov2" and inner else config.mlp_ratio,
    }  # fmt: skip
    if kind == "beit":
        return FAMILIES[kind], args | {
            "use_rel_pos_bias": config.use_relative_position_bias, "init_values": config.layer_scale_init_value,
            "use_shared_rel_pos_bias": config.use_shared_relative_position_bias,
            "use_abs_pos_emb": config.use_absolute_position_embeddings,
            "global_pool": "avg" if config.use_mean_pooling else "token",
        }  # fmt: skip
    args |= {"dynamic_img_size": True, "act_layer": _ACTIVATIONS.get(act, act)}
    return FAMILIES[kind], args


def vision_settings(backbone: nn.Module) -> dict[str, Any]:
    """Arguments of a transformers vision config for a timm ViT or Beit. UsageError for another architecture."""
    if not is_vit(backbone):
        raise UsageError(f"{type(backbone).__name__} has no transformers layout here: export it as timm")
    block, patch = backbone.blocks[0], backbone.patch_embed
    norms = [m.eps for m in backbone.modules() if isinstance(m, nn.LayerNorm)]
    return {
        "hidden_size": backbone.embed_dim, "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": block.attn.num_heads, "intermediate_size": block.mlp.fc1.out_features,
        "image_size": patch.img_size[0], "patch_size": patch.patch_size[0], "num_channels": patch.proj.in_channels,
        "layer_norm_eps": norms[0], "hidden_act": _CLASSES.get(type(block.mlp.act).__name__, "gelu"),
    }  # fmt: skip


def dinov2_model(settings: dict[str, Any]) -> Any:
    """An empty Dinov2Model of these sizes, as `vision_settings` names them."""
    import transformers as tf

    sizes = {key: value for key, value in settings.items() if key != "intermediate_size"}
    return tf.Dinov2Model(tf.Dinov2Config(**sizes, mlp_ratio=settings["intermediate_size"] // settings["hidden_size"]))
