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

    tokens_NKM: memory tokens; spatial ones first, pointers last. position_NKM: their positional encodings, or (1, K, M) where
        those of all objects are the same.
    pointer_tokens: how many of K are pointer tokens (they get no rotary embedding).
    valid_NK: False where padded; None when nothing is.
    """

    tokens_NKM: Tensor
    position_NKM: Tensor
    pointer_tokens: int
    valid_NK: Tensor | None


class BatchedMemoryAttention:
    """Callable (image_1LC, position_1LC, PackedMemory) -> (N, L, C).

    Two rewritings that leave every product as it was. Rotary embedding turns neighbouring channels as (x, y) of a plane
    (RoFormer, eq. 34): queries and keys have their channels sorted into all x, then all y, in the weights, which scores
    can't see and which spares interleaving. And values are linear in memory, softmax(s) (m V) = (softmax(s) m) V, so
    that attention averages the narrow memory, not the wide values.
    """

    # Scores of up to so many numbers are written out in full, which is quicker on a CPU than a fused kernel.
    max_explicit_scores = 1 << 22

    def __init__(self, module: nn.Module) -> None:
        self.layers = module.layers
        self.norm = module.layer_norm
        cos, sin = module.rotary_emb(torch.zeros(1, device=module.position_ids.device), module.position_ids)
        self.cos_LD, self.sin_LD = (x.squeeze(0)[..., ::2].contiguous() for x in (cos, sin))
        self.sorted = [
            {id(a): (_sort_planes(a.q_proj, a), _sort_planes(a.k_proj, a)) for a in (x.self_attn, x.cross_attn_image)}
            for x in self.layers
        ]

    def __call__(self, image_1LC: Tensor, position_1LC: Tensor, memory: PackedMemory) -> Tensor:
        """image_1LC: the frame's top-level features; the objects differ only in what they remember.

        Until the first cross-attention all objects have the same queries, so that they are computed once.
        """
        keys_NKM = memory.tokens_NKM + memory.position_NKM
        x = image_1LC + 0.1 * position_1LC
        for layer, projections in zip(self.layers, self.sorted):
            y = layer.layer_norm1(x)
            attn = layer.self_attn
            q, k = self._queries_and_keys(attn, projections[id(attn)], y, y, 0)
            out = F.scaled_dot_product_attention(q, k, _split_heads(attn.v_proj(y), q.shape[1]), scale=attn.scaling)
            x = x + attn.o_proj(out.transpose(1, 2).flatten(2))
            attn = layer.cross_attn_image
            y = layer.layer_norm2(x)
            q, k = self._queries_and_keys(attn, projections[id(attn)], y, keys_NKM, memory.pointer_tokens)
            x = x + attn.o_proj(self._read_memory(attn, q.expand(len(k), -1, -1, -1), k, memory))
            x = x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))
        return self.norm(x)

    def _queries_and_keys(
        self, attn: nn.Module, projections: tuple[_Linear, _Linear], query: Tensor, key: Tensor, unturned: int
    ) -> tuple[Tensor, Tensor]:
        heads = attn.num_attention_heads
        q, k = (_split_heads(F.linear(x, *p), heads) for x, p in zip((query, key), projections))
        return self._rotate(q, 0), self._rotate(k, unturned)

    def _read_memory(self, attn: nn.Module, q_NHLD: Tensor, k_NHKD: Tensor, memory: PackedMemory) -> Tensor:
        """Values of the memory, weighted by attention, (N, L, C)."""
        n, heads, length, _ = q_NHLD.shape
        valid = memory.valid_NK
        explicit = (
            heads == 1 and q_NHLD.device.type == "cpu" and n * length * k_NHKD.shape[2] <= self.max_explicit_scores
        )
        if not explicit:
            mask = None if valid is None else valid[:, None, None, :]
            values = _split_heads(attn.v_proj(memory.tokens_NKM), heads)
            out = F.scaled_dot_product_attention(q_NHLD, k_NHKD, values, attn_mask=mask, scale=attn.scaling)
            return out.transpose(1, 2).flatten(2)
        scores_NLK = torch.bmm(q_NHLD[:, 0] * attn.scaling, k_NHKD[:, 0].transpose(1, 2))
        if valid is not None:
            scores_NLK.masked_fill_(~valid[:, None, :], float("-inf"))
        return attn.v_proj(torch.bmm(scores_NLK.softmax(-1), memory.tokens_NKM))

    def _rotate(self, x_NHKD: Tensor, unturned: int) -> Tensor:
        """Axial rotary embedding of every whole image of tokens; the last `unturned` tokens are left as they are."""
        turned = x_NHKD.shape[2] - unturned
        out_NHKD = torch.empty_like(x_NHKD, dtype=torch.float32)
        images = (part[:, :, :turned].unflatten(2, (-1, len(self.cos_LD))) for part in (x_NHKD.float(), out_NHKD))
        (x, y), (out_x, out_y) = (part.chunk(2, -1) for part in images)
        # Written where they belong: sums and concatenations of what goes at once are a fifth of the time of many objects.
        torch.mul(x, self.cos_LD, out=out_x).addcmul_(y, self.sin_LD, value=-1)
        torch.mul(y, self.cos_LD, out=out_y).addcmul_(x, self.sin_LD)
        out_NHKD[:, :, turned:] = x_NHKD[:, :, turned:]
        return out_NHKD.to(x_NHKD.dtype)


_Linear = tuple[Tensor, Tensor]


def _sort_planes(projection: nn.Linear, attn: nn.Module) -> _Linear:
    """Weight and bias of a projection with each head's channels 0, 2, 4, ... first, then 1, 3, 5, ..."""
    order = torch.arange(projection.out_features).view(attn.num_attention_heads, -1, 2).transpose(1, 2).flatten()
    order = order.to(projection.weight.device)
    return projection.weight[order].contiguous(), projection.bias[order].contiguous()


def _split_heads(x_NKC: Tensor, heads: int) -> Tensor:
    n, length, width = x_NKC.shape
    return x_NKC.view(n, length, heads, width // heads).transpose(1, 2)
