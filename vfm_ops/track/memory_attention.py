"""SAM 2's memory attention over all objects of a frame at once, on the weights of transformers' module.

Objects may have different numbers of memories: shorter ones are padded and the padding is masked, which gives each
object what it would get alone. Letters: N objects, L image tokens (h * w), F memory frames, P pointer tokens,
K = F * L + P memory tokens, C hidden width, M memory width, H heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PackedMemory:
    """The memories of N objects, padded to one length.

    tokens_NKM, position_NKM: memory tokens and their positional encodings; spatial ones first, pointers last.
    pointer_tokens: how many of K are pointer tokens (they get no rotary embedding).
    valid_NK: False where padded; None when nothing is.
    """

    tokens_NKM: Tensor
    position_NKM: Tensor
    pointer_tokens: int
    valid_NK: Tensor | None


class BatchedMemoryAttention:
    """Callable (image_1LC, position_1LC, PackedMemory) -> (N, L, C)."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = module.layers
        self.norm = module.layer_norm
        cos, sin = module.rotary_emb(torch.zeros(1, device=module.position_ids.device), module.position_ids)
        # Neighbouring channels share an angle (RoFormer, eq. 34): even and odd ones turn as (x, y) of a plane.
        self.cos_LD, self.sin_LD = (x.squeeze(0)[..., ::2].contiguous() for x in (cos, sin))

    def __call__(self, image_1LC: Tensor, position_1LC: Tensor, memory: PackedMemory) -> Tensor:
        """image_1LC: the frame's top-level features; the objects differ only in what they remember.

        Until the first cross-attention all objects have the same queries, so that they are computed once.
        """
        mask = None if memory.valid_NK is None else memory.valid_NK[:, None, None, :]
        keys_NKM = memory.tokens_NKM + memory.position_NKM
        x = image_1LC + 0.1 * position_1LC
        for layer in self.layers:
            y = layer.layer_norm1(x)
            x = x + self._attend(layer.self_attn, y, y, y, 0, None)
            y = layer.layer_norm2(x)
            x = x + self._attend(
                layer.cross_attn_image, y, keys_NKM, memory.tokens_NKM, memory.pointer_tokens, mask
            )
            x = x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))
        return self.norm(x)

    def _attend(
        self, attn: nn.Module, query: Tensor, key: Tensor, value: Tensor, unturned: int, mask: Tensor | None
    ) -> Tensor:
        q, k, v = (_split_heads(x, attn.num_attention_heads) for x in (attn.q_proj(query), attn.k_proj(key), attn.v_proj(value)))
        q = self._rotate(q, 0)
        k = self._rotate(k, unturned)
        if len(q) != len(k):
            q = q.expand(len(k), -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attn.scaling)
        return attn.o_proj(out.transpose(1, 2).flatten(2))

    def _rotate(self, x_NHKD: Tensor, unturned: int) -> Tensor:
        """Axial rotary embedding of every whole image of tokens; the last `unturned` tokens are left as they are."""
        n, heads, length, width = x_NHKD.shape
        planes = x_NHKD[:, :, : length - unturned].float().reshape(n, heads, -1, len(self.cos_LD), width // 2, 2)
        x, y = planes.unbind(-1)
        turned = torch.stack([x * self.cos_LD - y * self.sin_LD, y * self.cos_LD + x * self.sin_LD], -1)
        turned = turned.reshape(n, heads, length - unturned, width).to(x_NHKD.dtype)
        return torch.cat([turned, x_NHKD[:, :, length - unturned :]], 2) if unturned else turned


def _split_heads(x_NKC: Tensor, heads: int) -> Tensor:
    n, length, width = x_NKC.shape
    return x_NKC.view(n, length, heads, width // heads).transpose(1, 2)
