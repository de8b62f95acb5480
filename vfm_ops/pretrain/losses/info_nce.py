"""CLIP's symmetric InfoNCE. Radford et al. 2021, figure 3."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_gather_with_grad, rank

ClipExchange = Literal["local", "global"]


def info_nce(image_BD: Tensor, text_BD: Tensor, scale: Tensor, exchange: ClipExchange = "local") -> Tensor:
    """Symmetric InfoNCE: cross-entropy along rows and along columns of scale * image @ text.T, halved.

    image_BD, text_BD: L2-normalised, float, this rank's pairs. scale: scalar, already exponentiated.
    exchange: `local` computes this rank's B rows and B columns against all N (logits 2 x B x N); `global` computes the
    whole N x N on every rank. Both have the same exact gradient; local needs W times fewer logits.
    Returns a scalar, ln N when nothing is learnt.
    """
    image_ND, text_ND = all_gather_with_grad(image_BD), all_gather_with_grad(text_BD)
    if exchange == "global":
        logits_NN = scale * image_ND @ text_ND.T
        target_N = torch.arange(len(logits_NN), device=logits_NN.device)
        return (F.cross_entropy(logits_NN, target_N) + F.cross_entropy(logits_NN.T, target_N)) / 2
    target_B = torch.arange(len(image_BD), device=image_BD.device) + rank() * len(image_BD)
    by_image = F.cross_entropy(scale * image_BD @ text_ND.T, target_B)
    by_text = F.cross_entropy(scale * text_BD @ image_ND.T, target_B)
    return (by_image + by_text) / 2
