"""RepVL-PAN (paper, section 3.3): a path-aggregation network whose CSP layers look where the text says.

Names: B images, N prompts, D text dimension, M attention heads of C channels each, H x W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vfm_ops.detect.yolo_world.backbone import Size
from vfm_ops.detect.yolo_world.layers import ConvBn, CspLayer

HEAD_CHANNELS = 32


class MaxSigmoidAttention(nn.Module):
    """T-CSPLayer's guide (eq. 4): X' = X * sigmoid(max over prompts of <X, W>), head by head."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_CHANNELS
        self.guide_fc = nn.Linear(text_dim, channels)
        self.bias = nn.Parameter(torch.zeros(self.heads))
        self.project_conv = ConvBn(channels, channels, 3, act=False)

    def forward(self, x: Tensor, text_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """x: (B, M * C, H, W). valid_BN: which prompts are real; padded ones never win the maximum."""
        guide_BNMC = self.guide_fc(text_BND).unflatten(-1, (self.heads, -1))
        score_BMNHW = torch.einsum("bmchw,bnmc->bmnhw", x.unflatten(1, (self.heads, -1)), guide_BNMC)
        score_BMNHW = score_BMNHW.masked_fill(~valid_BN[:, None, :, None, None], -torch.inf)
        return gate(self.project_conv(x), score_BMNHW.amax(dim=2) / HEAD_CHANNELS**0.5, self.bias)


def gate(x: Tensor, score_BMHW: Tensor, bias_M: Tensor) -> Tensor:
    """Weigh each head's channels of x (B, M * C, H, W) by the sigmoid of its score at that position."""
    weight_BMHW = (score_BMHW + bias_M[:, None, None]).sigmoid()
    return (x.unflatten(1, (len(bias_M), -1)) * weight_BMHW[:, :, None]).flatten(1, 2)


class GuidedCspLayer(CspLayer):
    """A CSP layer with one more stage: its last bottleneck's output, guided by the text."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, text_dim: int) -> None:
        super().__init__(channels_in, channels_out, blocks, shortcut=False, extra=1)
        self.attn_block: nn.Module = MaxSigmoidAttention(self.middle, text_dim)

    def forward(self, x: Tensor, text_BND: Tensor, valid_BN: Tensor) -> Tensor:  # type: ignore[override]
        stages = self.stages(x)
        stages.append(self.attn_block(stages[-1], text_BND, valid_BN))
        return self.final_conv(torch.cat(stages, dim=1))


class RepVlPan(nn.Module):
    """Features at strides 8, 16, 32 -> the same, after a way down and a way up, each guided by the text."""

    def __init__(self, size: Size, text_dim: int) -> None:
        super().__init__()
        fine, mid, coarse = size.levels
        n = size.neck_blocks
        self.top_down_layers = nn.ModuleList(
            [GuidedCspLayer(coarse + mid, mid, n, text_dim), GuidedCspLayer(mid + fine, fine, n, text_dim)]
        )
        self.downsample_layers = nn.ModuleList([ConvBn(fine, fine, 3, stride=2), ConvBn(mid, mid, 3, stride=2)])
        self.bottom_up_layers = nn.ModuleList(
            [GuidedCspLayer(fine + mid, mid, n, text_dim), GuidedCspLayer(mid + coarse, coarse, n, text_dim)]
        )

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], text_BND: Tensor, valid_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        fine, mid, coarse = features
        mid = self.top_down_layers[0](torch.cat([_double(coarse), mid], 1), text_BND, valid_BN)
        fine = self.top_down_layers[1](torch.cat([_double(mid), fine], 1), text_BND, valid_BN)
        mid = self.bottom_up_layers[0](torch.cat([self.downsample_layers[0](fine), mid], 1), text_BND, valid_BN)
        coarse = self.bottom_up_layers[1](torch.cat([self.downsample_layers[1](mid), coarse], 1), text_BND, valid_BN)
        return fine, mid, coarse


def _double(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")
