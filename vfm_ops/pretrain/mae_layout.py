"""MAE's decoder in transformers' names (ViTMAEForPreTraining), in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm_ops.pretrain.layouts import from_timm, to_timm
from vfm_ops.pretrain.mae_decoder import MAEDecoder

_OUTER = {
    "decoder_embed.weight": "embed.weight", "decoder_embed.bias": "embed.bias", "mask_token": "mask_token",
    "decoder_norm.weight": "norm.weight", "decoder_norm.bias": "norm.bias",
    "decoder_pred.weight": "predict.weight", "decoder_pred.bias": "predict.bias",
}  # fmt: skip


def decoder_to_transformers(decoder: MAEDecoder, model: Any) -> None:
    """Writes our decoder into a ViTMAEForPreTraining of the same sizes, in place. Its class token has position 0."""
    mine, theirs = decoder.state_dict(), model.decoder.state_dict()
    state = {key: mine[name] for key, name in _OUTER.items()}
    cls = torch.zeros_like(decoder.positions[:, : decoder.prefix])
    state["decoder_pos_embed"] = torch.cat([cls, decoder.positions], dim=1)
    layers = {
        key.removeprefix("decoder_"): value.shape for key, value in theirs.items() if key.startswith("decoder_layers.")
    }
    blocks = {name: value for name, value in mine.items() if name.startswith("blocks.")}
    state |= {"decoder_" + key: value for key, value in from_timm(blocks, layers).items()}
    model.decoder.load_state_dict(state)


def decoder_from_transformers(decoder: MAEDecoder, theirs: dict[str, Tensor], eps: float = 1e-12) -> None:
    """Reads `model.decoder.state_dict()` of a ViTMAEForPreTraining into our decoder, in place."""
    state = {name: theirs[key] for key, name in _OUTER.items()}
    state["positions"] = theirs["decoder_pos_embed"][:, decoder.prefix :]
    layers = {key.removeprefix("decoder_"): value for key, value in theirs.items() if key.startswith("decoder_layers.")}
    shapes = {key: value.shape for key, value in decoder.state_dict().items() if key.startswith("blocks.")}
    decoder.load_state_dict(state | to_timm(layers, shapes))
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
