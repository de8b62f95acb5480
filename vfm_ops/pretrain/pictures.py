"""What a model looks at, as arrays that can be drawn: the class token's attention. (MAE's pictures: `MAE.reconstruct`.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm_ops.pretrain.backbones import patch_size, require_vit


@torch.no_grad()
def class_attention(backbone: nn.Module, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block (DINO, figure 1): (B, heads, rows, columns), float32.

    images: normalised (B, C, H, W). Each head's shares sum to 1 less what goes to class and register tokens.
    """
    require_vit(backbone, "class_attention")
    caught: list[Tensor] = []
    attention = backbone.blocks[-1].attn
    handle = attention.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    was_training = backbone.training
    backbone.eval().forward_features(images)
    handle.remove()
    backbone.train(was_training)
    x_BTD = caught[0]
    batch, tokens = x_BTD.shape[:2]
    query, key, _ = attention.qkv(x_BTD).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    share_BHT = (query[:, :, :1] * attention.scale @ key.transpose(-2, -1)).softmax(-1).squeeze(2)
    prefix = backbone.num_prefix_tokens
    side = patch_size(backbone)
    return share_BHT[..., prefix:].unflatten(-1, (images.shape[-2] // side, images.shape[-1] // side)).float()
