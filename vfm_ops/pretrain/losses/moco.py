"""MoCo's two losses. v2: He et al. 2020, eq. 1 (queue); v3: Chen, Xie and He 2021, algorithm 1 (no queue, 2T scale)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_gather_detached, rank


def moco_queue_loss(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of (q . k+, q . queue) / T with the key at index 0. Inputs are normalised here except the queue."""
    query_BD, key_BD = F.normalize(query_BD, dim=-1), F.normalize(key_BD.detach(), dim=-1)
    positive_B1 = (query_BD * key_BD).sum(-1, keepdim=True)
    logits = torch.cat([positive_B1, query_BD @ queue_KD.detach().T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def moco_v3_loss(query_BD: Tensor, key_BD: Tensor, temperature: float = 1.0) -> Tensor:
    """2T * cross-entropy of q @ k.T / T over the keys of all ranks. Call it for (q1, k2) and (q2, k1) and add.

    Keys come from the momentum encoder and carry no gradient; so gathering them without gradient is exact here.
    """
    query_BD, key_ND = F.normalize(query_BD, dim=-1), all_gather_detached(F.normalize(key_BD, dim=-1))
    target_B = torch.arange(len(query_BD), device=query_BD.device) + rank() * len(query_BD)
    return 2 * temperature * F.cross_entropy(query_BD @ key_ND.T / temperature, target_B)
