"""Building blocks of YOLOv8, which YOLO-World takes over. Attribute names are those of the published weights' keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BN_EPS = 1e-3
BN_MOMENTUM = 0.03


class ConvBn(nn.Module):
    """Convolution without bias, batch norm, and SiLU where `act`; padded to keep the size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3 x 3 convolutions, added to their input where `shortcut`."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvBn(channels, channels, 3)
        self.conv2 = ConvBn(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CspLayer(nn.Module):
    """Cross-stage partial layer (C2f): one half passes by, the other goes through bottlenecks; every stage is kept."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, shortcut: bool, extra: int = 0) -> None:
        super().__init__()
        self.middle = channels_out // 2
        self.main_conv = ConvBn(channels_in, 2 * self.middle)
        self.blocks = nn.ModuleList(Bottleneck(self.middle, shortcut) for _ in range(blocks))
        self.final_conv = ConvBn((2 + blocks + extra) * self.middle, channels_out)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The two halves and each bottleneck's output, (B, middle, H, W) each."""
        stages = list(self.main_conv(x).chunk(2, dim=1))
        for block in self.blocks:
            stages.append(block(stages[-1]))
        return stages

    def forward(self, x: Tensor) -> Tensor:
        return self.final_conv(torch.cat(self.stages(x), dim=1))


class Sppf(nn.Module):
    """Spatial pyramid pooling: three 5 x 5 max pools, one after the other, beside their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.conv2 = ConvBn(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.conv1(x)]
        for _ in range(3):
            pyramid.append(self.pool(pyramid[-1]))
        return self.conv2(torch.cat(pyramid, dim=1))
