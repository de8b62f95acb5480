"""KoLeo: spreads a batch over the sphere by the nearest-neighbour entropy estimate. Sablayrolles et al. 2019, eq. 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_gather_with_grad, rank
from vfm_ops.pretrain.losses.precision import widen


def koleo_loss(x_BD: Tensor, eps: float = 1e-8) -> Tensor:
    """-mean log distance to the nearest other unit vector in the global batch.

    x_BD: features before the projection head, of one crop (of two crops of an image each would be the other's neighbour).
    An opposite pair gives -ln 2, an orthogonal pair -ln sqrt 2. The neighbour is chosen without gradient, the
    distance has it on
    both ends, also when the neighbour lives on another rank.
    """
    x_BD = F.normalize(widen(x_BD), dim=-1, eps=eps)
    all_ND = all_gather_with_grad(x_BD)
    with torch.no_grad():
        cosine_BN = x_BD @ all_ND.T
        own = torch.arange(len(x_BD), device=x_BD.device)
        cosine_BN[own, own + rank() * len(x_BD)] = -2.0
        nearest_B = cosine_BN.argmax(dim=1)
    squared_B = (x_BD - all_ND[nearest_B]).square().sum(-1)
    return -(squared_B.clamp(min=eps * eps).sqrt() + eps).log().mean()
