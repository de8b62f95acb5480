"""BEiT's masked image modelling: which visual token was here. Bao et al. 2022, eq. 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def beit_loss(logits_MV: Tensor, token_M: Tensor) -> Tensor:
    """Cross-entropy of the visual-token ids at masked patches. logits_MV: (M, vocabulary); token_M: int64 ids.

    Every image masks the same number of patches, so the mean over M is the mean over images, on any number of ranks.
    """
    return F.cross_entropy(logits_MV, token_M)
