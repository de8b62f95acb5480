"""How SAM and SAM 2 see an image: SAM keeps its shape and pads right and bottom, SAM 2 squeezes it into a square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """image_size: side S of the model's square input. letterbox: True for SAM, False for SAM 2. mean, std: RGB, 0-1."""

    image_size: int
    letterbox: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size` takes inside the square."""
        if not self.letterbox:
            return self.image_size, self.image_size
        scale = self.image_size / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def scale(self, size: tuple[int, int]) -> np.ndarray:
        """float64 (2,): what an (x, y) of the image is multiplied by."""
        height, width = self.resized(size)
        return np.array([width / size[1], height / size[0]])

    def prepare(self, rgb: np.ndarray, device: torch.device) -> Tensor:
        """uint8 (H, W, 3) -> normalised float32 (1, 3, S, S); padding is 0, which is the mean colour."""
        from torchvision.transforms.v2 import functional as TF

        pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].to(device)
        pixels = TF.resize(pixels, list(self.resized(rgb.shape[:2])), TF.InterpolationMode.BILINEAR, antialias=True)
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1) * 255
        return self._pad((pixels.float() - mean) / std, self.image_size)

    def mask_prompt(self, masks_N1HW: Tensor, side: int) -> Tensor:
        """Masks of the image's size as logits of the model's coarse mask input, (N, 1, side, side)."""
        height, width = self.resized(masks_N1HW.shape[-2:])
        fitted = (round(height * side / self.image_size), round(width * side / self.image_size))
        coarse = F.interpolate(masks_N1HW.float(), size=fitted, mode="bilinear", align_corners=False, antialias=True)
        # Between -10 and 10, as SAM 2 scales the masks that it is given.
        return self._pad(coarse, side) * 20.0 - 10.0

    def to_image(self, logits_NKhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits of the square -> logits on the image, (N, K, height, width), bilinear."""
        if self.letterbox:
            square = (self.image_size, self.image_size)
            logits_NKhw = F.interpolate(logits_NKhw, size=square, mode="bilinear", align_corners=False)
            height, width = self.resized(size)
            logits_NKhw = logits_NKhw[..., :height, :width]
        return F.interpolate(logits_NKhw, size=size, mode="bilinear", align_corners=False)

    def each_on_image(self, logits_Mhw: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """As `to_image`, mask by mask, float32 (height, width) each: OpenCV takes a tenth of the time on a CPU."""
        for logits in logits_Mhw:
            if self.letterbox:
                height, width = self.resized(size)
                logits = cv2.resize(logits, (self.image_size, self.image_size), interpolation=cv2.INTER_LINEAR)
                logits = logits[:height, :width]
            yield cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR)

    @staticmethod
    def _pad(x: Tensor, side: int) -> Tensor:
        return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))
