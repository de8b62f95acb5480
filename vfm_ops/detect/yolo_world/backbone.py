"""The sizes of the family, and YOLOv8's backbone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vfm_ops.detect.yolo_world.layers import ConvBn, CspLayer, Sppf

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Size:
    """Channels of the five stages (strides 2 to 32), bottlenecks of a neck layer, and of the four backbone layers."""

    name: str
    channels: tuple[int, int, int, int, int]
    backbone_blocks: tuple[int, int, int, int]
    neck_blocks: int

    @property
    def levels(self) -> tuple[int, int, int]:
        """Channels at strides 8, 16 and 32."""
        return self.channels[2], self.channels[3], self.channels[4]


SIZES = {
    "s": Size("s", (32, 64, 128, 256, 512), (1, 2, 2, 1), 1),
    "m": Size("m", (48, 96, 192, 384, 576), (2, 4, 4, 2), 2),
    "l": Size("l", (64, 128, 256, 512, 512), (3, 6, 6, 3), 3),
}


class CspDarknet(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 32 -> features at strides 8, 16 and 32."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        c, n = size.channels, size.backbone_blocks
        self.stem = ConvBn(3, c[0], 3, stride=2)
        self.stage1 = self._stage(c[0], c[1], n[0])
        self.stage2 = self._stage(c[1], c[2], n[1])
        self.stage3 = self._stage(c[2], c[3], n[2])
        self.stage4 = self._stage(c[3], c[4], n[3]).append(Sppf(c[4]))

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
        down = ConvBn(channels_in, channels_out, 3, stride=2)
        return nn.Sequential(down, CspLayer(channels_out, channels_out, blocks, shortcut=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8 = self.stage2(self.stage1(self.stem(images)))
        stride16 = self.stage3(stride8)
        return stride8, stride16, self.stage4(stride16)
