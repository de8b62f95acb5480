"""A small visual tokenizer: each patch becomes one of V ids, by vector quantisation trained on reconstruction.

Stands where BEiT has DALL-E's dVAE. van den Oord et al. 2017 (VQ-VAE), appendix A.1: the codebook follows the encoder by
exponential averages; dead codes are re-seeded from the batch (Razavi et al. 2019 use restarts likewise).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_ops.pretrain.losses.collective import all_gather_detached, all_reduce_detached
from vfm_ops.pretrain.losses.mae import patchify
from vfm_ops.pretrain.losses.precision import widen


class PatchVQ(nn.Module):
    """Patches with their neighbours' context -> codes of unit length -> nearest codebook entry -> pixels of the patch."""

    codebook_VD: Tensor
    usage_V: Tensor
    sums_VD: Tensor

    def __init__(self, patch: int, channels: int, vocabulary: int = 8192, dim: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.patch, self.decay, self.commitment = patch, 0.99, 0.25
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, hidden, patch, stride=patch), nn.GELU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, patch * patch * channels))
        codebook = F.normalize(torch.randn(vocabulary, dim), dim=-1)
        self.register_buffer("codebook_VD", codebook)
        self.register_buffer("usage_V", torch.ones(vocabulary))
        self.register_buffer("sums_VD", codebook.clone())

    def codes(self, images: Tensor) -> Tensor:
        """Unit vectors before quantisation, (B, L, D), patches in row order."""
        return F.normalize(widen(self.encoder(images)).flatten(2).transpose(1, 2), dim=-1)

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """Ids (B, L), int64, in [0, V): the codebook entry with the largest cosine."""
        return (self.codes(images) @ self.codebook_VD.T).argmax(-1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Reconstruction and commitment loss; in training, moves the codebook too. images: normalised (B, C, H, W)."""
        code_BLD = self.codes(images)
        token_BL = (code_BLD.detach() @ self.codebook_VD.T).argmax(-1)
        entry_BLD = self.codebook_VD[token_BL]
        through_BLD = code_BLD + (entry_BLD - code_BLD).detach()  # straight-through estimator
        reconstruction = F.mse_loss(widen(self.decoder(through_BLD)), widen(patchify(images, self.patch)))
        loss = reconstruction + self.commitment * F.mse_loss(code_BLD, entry_BLD)
        if self.training:
            self._move_codebook(code_BLD.detach().flatten(0, 1), token_BL.flatten())
        perplexity = _perplexity(token_BL, len(self.codebook_VD))
        return {"loss": loss, "reconstruction": reconstruction.detach(), "codebook_perplexity": perplexity}

    @torch.no_grad()
    def _move_codebook(self, code_ND: Tensor, token_N: Tensor) -> None:
        counts_V = torch.zeros_like(self.usage_V).index_add_(0, token_N, torch.ones_like(code_ND[:, 0]))
        sums_VD = torch.zeros_like(self.sums_VD).index_add_(0, token_N, code_ND)
        self.usage_V.lerp_(all_reduce_detached(counts_V), 1 - self.decay)
        self.sums_VD.lerp_(all_reduce_detached(sums_VD), 1 - self.decay)
        dead = self.usage_V < 0.1
        if dead.any():
            # Evenly spaced rows, gathered from all ranks: the same replacement everywhere without a broadcast.
            spare_ND = all_gather_detached(code_ND[:: max(1, len(code_ND) // 256)][:256])
            index = torch.arange(int(dead.sum()), device=code_ND.device) % len(spare_ND)
            self.sums_VD[dead] = spare_ND[index].to(self.sums_VD.dtype)
            self.usage_V[dead] = 1.0
        self.codebook_VD.copy_(F.normalize(self.sums_VD, dim=-1))


def _perplexity(token: Tensor, vocabulary: int) -> Tensor:
    """exp of the entropy of the ids used in this batch: the number of codes in effective use."""
    share = torch.bincount(token.flatten(), minlength=vocabulary).float() / token.numel()
    return torch.special.entr(share).sum().exp()
