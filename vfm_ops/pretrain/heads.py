"""Projection heads: perceptrons with batch norm over the global batch, and DINO's prototype head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_ops.pretrain.losses.collective import all_reduce_sum_with_grad, world_size


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the global batch, with gradient through the sums, on any backend.

    Ranks must hold equal batches. Running statistics use the unbiased variance of the global batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        count = len(input) * world_size()
        mean_D = all_reduce_sum_with_grad(input.sum(0)) / count
        centred_BD = input - mean_D
        variance_D = all_reduce_sum_with_grad(centred_BD.square().sum(0)) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean_D.detach(), self.momentum)
                self.running_var.lerp_(variance_D.detach() * count / max(1, count - 1), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scaled_BD = centred_BD / (variance_D + self.eps).sqrt()
        if self.weight is not None:
            scaled_BD = scaled_BD * self.weight
        return scaled_BD if self.bias is None else scaled_BD + self.bias


def projector(
    width: int,
    hidden: int,
    out: int,
    layers: int = 2,
    norm: bool = True,
    last_norm: bool = False,
    last_scale: bool = False,
    last_bias: bool = True,
) -> nn.Module:
    """Perceptron: (linear, norm, ReLU) x (layers - 1), linear; with `last_norm`, a batch norm at the end, which learns a
    scale with `last_scale`, and never an offset. last_bias: of the last linear layer; one that a norm follows has none.

    SimCLR: 3 layers, last_norm and last_scale; MoCo v2: 2 layers without norms; MoCo v3: 3 (projection, of a ResNet 2) and 2
    (prediction) with last_norm, without it in a ResNet's prediction.
    """
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, hidden, bias=not norm), *([GlobalBatchNorm1d(hidden)] if norm else []), nn.ReLU()]
        width = hidden
    parts.append(nn.Linear(width, out, bias=last_bias and not last_norm))
    if last_norm:
        final = GlobalBatchNorm1d(out, affine=last_scale)
        final.register_parameter("bias", None)
        parts.append(final)
    return nn.Sequential(*parts)


class PrototypeHead(nn.Module):
    """DINO's head: three GELU layers, a normalised bottleneck, and prototypes of unit length (weight norm with g = 1).

    Input (..., width), output logits (..., prototypes) in [-1, 1]: bounded, so that a temperature of 0.04 can't give NaN.
    """

    def __init__(self, width: int, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.mlp(x), dim=-1, eps=1e-6)
        return F.linear(x, F.normalize(self.last_layer.weight, dim=-1))
