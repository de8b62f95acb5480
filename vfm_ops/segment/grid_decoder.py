"""SAM's mask decoder for many single points of one image, with the same weights and less work than prompt by prompt.

Its transformer looks from a few tokens to all pixels, and back. Three things are put to use here:

- the pixels that the first layer sees are the same for every point: they are projected once an image;
- what is projected from all pixels only to meet a few tokens is projected from the tokens instead:
  (x W_k) . q = x . (W_k q), sum_l a_l (x_l W_v) = (sum_l a_l x_l) W_v, and a (v W_o) for (a v) W_o;
- predicted IoUs are there before the masks, so that only masks that are wanted are made.

Answers differ from transformers' by rounding alone. Letters: N points, T tokens of each, L pixels of the encoder's map (h x w),
C channels, H heads of d channels, K candidates of a point, M masks that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES_AT_ONCE = 16 << 20  # of one tensor on a CPU: larger ones leave its caches, and are fresh pages each time


@dataclass(frozen=True)
class Decoded:
    """Masks that were wanted. logits_Mhw: as the decoder makes them, 4h x 4w. point, candidate: int64 (M,), whose they are."""

    logits_Mhw: Tensor
    scores_M: Tensor
    point_M: Tensor
    candidate_M: Tensor


class GridDecoder:
    """Decodes the points of one image. model: transformers' SamModel or Sam2Model. features: of its encoder, batch 1."""

    def __init__(self, model: nn.Module, features: tuple[Tensor, ...]) -> None:
        self.model: Any = model
        self.decoder: Any = model.mask_decoder
        self.layers = list(self.decoder.transformer.layers)
        dense = self.model.prompt_encoder(None, None, None, None)[1]
        self.pixels_LC = _rows(features[-1] + dense)
        self.places_LC = _rows(self.model.get_image_wide_positional_embeddings())
        self.side = features[-1].shape[-1]
        self.upscaling = _Upscaling(self.decoder, features[:-1])
        keys = self.pixels_LC + self.places_LC
        first, back = self.layers[0].cross_attn_token_to_image, self.layers[0].cross_attn_image_to_token
        self.first_keys = _heads(first.k_proj(keys), first)
        self.first_values = _heads(first.v_proj(self.pixels_LC), first)
        self.first_queries = _heads(back.q_proj(keys), back)

    def points_at_once(self, most: int) -> int:
        """How many points are fastest together, at most `most`."""
        if self.pixels_LC.device.type != "cpu":
            return most
        return max(1, min(most, BYTES_AT_ONCE // (4 * self.pixels_LC.numel())))

    def decode(self, points_N2: Tensor, wanted: Callable[[Tensor], Tensor], at_once: int) -> Iterator[Decoded]:
        """Masks of points on the object, xy in the model's pixels, a few points at a time.

        wanted: takes predicted IoUs, float32 (N, K), and says of which the masks are wanted, bool (N, K).
        """
        size = self.points_at_once(at_once)
        for start in range(0, len(points_N2), size):
            tokens_NTC, pixels_NLC = self._transformed(self._tokens(points_N2[start : start + size]))
            masks_NKC, scores_NK = self._heads_of(tokens_NTC)
            keep_NK = wanted(scores_NK)
            point, candidate = torch.nonzero(keep_NK, as_tuple=True)
            if len(point) == 0:
                continue
            rows = torch.nonzero(keep_NK.any(1)).flatten()
            logits_NKhw = self.upscaling.masks(pixels_NLC[rows], masks_NKC[rows], self.side)
            yield Decoded(logits_NKhw[keep_NK[rows]], scores_NK[keep_NK], point + start, candidate)

    def _tokens(self, points_N2: Tensor) -> Tensor:
        """(N, T, C): the decoder's own tokens, then the point and the padding that SAM gives it."""
        labels = torch.ones(1, len(points_N2), 1, dtype=torch.int32, device=points_N2.device)
        sparse = self.model.prompt_encoder(points_N2[None, :, None], labels, None, None)[0][0]
        names = ("obj_score_token", "iou_token", "mask_tokens")
        own = torch.cat([getattr(self.decoder, name).weight for name in names if hasattr(self.decoder, name)])
        return torch.cat([own.expand(len(points_N2), -1, -1), sparse], 1)

    def _transformed(self, own_NTC: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens (N, T, C) and pixels (N, L, C) after it."""
        tokens, pixels, keys = own_NTC, self.pixels_LC, None
        for layer in self.layers:
            query = tokens if layer.skip_first_layer_pe else tokens + own_NTC
            seen = layer.self_attn(query[None], query[None], tokens[None])[0][0]
            tokens = layer.layer_norm1(seen if layer.skip_first_layer_pe else tokens + seen)
            looks = layer.cross_attn_token_to_image
            seen = self._first_look(tokens + own_NTC) if keys is None else _look(looks, tokens + own_NTC, keys, pixels)
            tokens = layer.layer_norm2(tokens + seen)
            tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
            pixels = self._told(layer, tokens, own_NTC, pixels, keys)
            keys = pixels + self.places_LC
        last = self.decoder.transformer.final_attn_token_to_image
        tokens = tokens + _look(last, tokens + own_NTC, keys, pixels)
        return self.decoder.transformer.layer_norm_final_attn(tokens), pixels

    def _first_look(self, tokens_NTC: Tensor) -> Tensor:
        """Tokens look at pixels that all points have in common: an attention with N x T queries."""
        attention = self.layers[0].cross_attn_token_to_image
        query = _heads(attention.q_proj(tokens_NTC).flatten(0, 1), attention)
        seen = F.scaled_dot_product_attention(query[None], self.first_keys[None], self.first_values[None])[0]
        return _out(attention)(seen.transpose(0, 1).reshape(*tokens_NTC.shape[:2], -1))

    def _told(self, layer: Any, tokens_NTC: Tensor, own_NTC: Tensor, pixels: Tensor, keys: Tensor | None) -> Tensor:
        """(N, L, C): each pixel after it looked at the tokens of its point."""
        attention = layer.cross_attn_image_to_token
        heads, count = attention.num_attention_heads, tokens_NTC.shape[1]
        key_NHTd = _split(attention.k_proj(tokens_NTC + own_NTC), heads) * attention.scaling
        if keys is None:
            scores_NHTL = key_NHTd @ self.first_queries.transpose(1, 2)
        else:
            bias_NHT1 = (key_NHTd @ attention.q_proj.bias.view(heads, -1, 1)).flatten(1, 2)
            folded = (key_NHTd @ _by_head(attention.q_proj.weight, heads)).flatten(1, 2)
            scores_NHTL = torch.baddbmm(bias_NHT1, folded, keys.transpose(1, 2)).unflatten(1, (heads, count))
        weights = scores_NHTL.softmax(2).flatten(1, 2)
        out = _out(attention)
        value_NHTd = _split(attention.v_proj(tokens_NTC), heads)
        # The weights of a head sum to 1, so that its share of the bias is in every token.
        told_NHTC = value_NHTd @ _by_head(out.weight.T, heads) + out.bias / heads
        base = pixels if pixels.dim() == 3 else pixels.expand(len(tokens_NTC), -1, -1)
        return layer.layer_norm4(torch.baddbmm(base, weights.transpose(1, 2), told_NHTC.flatten(1, 2)))

    def _heads_of(self, tokens_NTC: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, C / 8) what a mask is made of, and (N, K) its predicted IoU: of the candidates of an ambiguous prompt."""
        first = int(hasattr(self.decoder, "obj_score_token"))
        scores = self.decoder.iou_prediction_head(tokens_NTC[:, first])[:, 1:].float()
        networks = self.decoder.output_hypernetworks_mlps
        masks = [networks[k](tokens_NTC[:, first + 1 + k]) for k in range(1, len(networks))]
        return torch.stack(masks, 1), scores


class _Upscaling:
    """The two transposed convolutions, whose stride is their size: matrix products, with the pixels that a pixel becomes
    beside one another, in the last axes, until the end."""

    def __init__(self, decoder: Any, finer: tuple[Tensor, ...]) -> None:
        self.norm = decoder.upscale_layer_norm
        convolutions = (decoder.upscale_conv1, decoder.upscale_conv2)
        # (in, out, 2, 2) -> (in, 2 x 2 x out)
        self.weights = [c.weight.permute(0, 2, 3, 1).flatten(1) for c in convolutions]
        self.added = [c.bias.repeat(4)[None] for c in convolutions]
        if finer:
            # SAM 2 adds the encoder's finer maps, of 4h x 4w and of 2h x 2w.
            self.added[0] = self.added[0] + _nested(finer[1], 1)
            self.added[1] = self.added[1] + _nested(finer[0], 2)

    def masks(self, pixels_NLC: Tensor, masks_NKC: Tensor, side: int) -> Tensor:
        """(N, K, 4h, 4w) logits."""
        n, k = masks_NKC.shape[:2]
        x = self._doubled(0, pixels_NLC)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps))
        x = F.gelu(self._doubled(1, x))
        logits = (masks_NKC @ x.transpose(1, 2)).view(n, k, side, x.shape[1] // (16 * side), 2, 2, 2, 2)
        return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(n, k, 4 * side, -1).float()

    def _doubled(self, which: int, x_NLC: Tensor) -> Tensor:
        """(N, 4 L, out): each pixel's four, one after the other."""
        n, count, _ = x_NLC.shape
        added = self.added[which].expand(n, count, -1)
        return torch.baddbmm(added, x_NLC, self.weights[which].expand(n, -1, -1)).view(n, 4 * count, -1)


def _look(attention: Any, tokens_NTC: Tensor, keys_NLC: Tensor, values_NLC: Tensor) -> Tensor:
    """Tokens look at the pixels of their own point."""
    heads = attention.num_attention_heads
    query = _split(attention.q_proj(tokens_NTC), heads) * attention.scaling
    # The keys' bias adds the same to every pixel's score, which softmax doesn't see.
    folded = (query @ _by_head(attention.k_proj.weight, heads)).flatten(1, 2)
    weights = (folded @ keys_NLC.transpose(1, 2)).softmax(-1)
    seen = (weights @ values_NLC).unflatten(1, (heads, -1)) @ _by_head(attention.v_proj.weight, heads).transpose(1, 2)
    return _out(attention)(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _rows(map_1Chw: Tensor) -> Tensor:
    return map_1Chw[0].flatten(1).T.contiguous()


def _heads(x_LD: Tensor, attention: Any) -> Tensor:
    return x_LD.unflatten(1, (attention.num_attention_heads, -1)).transpose(0, 1).contiguous()


def _split(x_NTD: Tensor, heads: int) -> Tensor:
    return x_NTD.unflatten(2, (heads, -1)).transpose(1, 2)


def _by_head(weight_DC: Tensor, heads: int) -> Tensor:
    return weight_DC.unflatten(0, (heads, -1))


def _out(attention: Any) -> nn.Linear:
    return attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj


def _nested(map_1Chw: Tensor, doublings: int) -> Tensor:
    """A finer map in the order of the pixels that a coarse pixel becomes: (rows, 2 x 2 x C), rows as `_doubled` takes them."""
    c, height, width = map_1Chw.shape[1:]
    steps = [2] * doublings
    coarse = height >> doublings, width >> doublings
    # c, h, dy.., w, dx.. -> h, w, dy, dx, dy, dx, c
    x = map_1Chw[0].reshape(c, coarse[0], *steps, coarse[1], *steps)
    down, right = range(2, 2 + doublings), range(3 + doublings, 3 + 2 * doublings)
    pairs = [axis for pair in zip(down, right) for axis in pair]
    return x.permute(1, 2 + doublings, *pairs, 0).reshape(-1, 4 * c)
