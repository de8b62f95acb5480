"""SimCLR's NT-Xent. Chen et al. 2020, eq. 1 and algorithm 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_gather_with_grad, rank


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of each of the 2N views against the other 2N - 1, its partner being the answer; mean over the 2N.

    first_BD, second_BD: projections of the two views, normalised here. The mean over 2N is the paper's (1 / 2N in
    algorithm 1); the authors' code sums the two directions' means, which is twice this. ln(2N - 1) when nothing is learnt.
    """
    batch = len(first_BD)
    first_BD, second_BD = F.normalize(first_BD, dim=-1), F.normalize(second_BD, dim=-1)
    first_ND, second_ND = all_gather_with_grad(first_BD), all_gather_with_grad(second_BD)
    total = len(first_ND)
    logits = torch.cat([first_BD, second_BD]) @ torch.cat([first_ND, second_ND]).T / temperature
    own = torch.arange(batch, device=logits.device) + rank() * batch
    itself = torch.cat([own, own + total])
    partner = torch.cat([own + total, own])
    self_pair = F.one_hot(itself, 2 * total).bool()
    return F.cross_entropy(logits.masked_fill(self_pair, float("-inf")), partner)
