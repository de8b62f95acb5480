"""The head: at every position a similarity to each prompt, and four distances as distributions.

Names: B images, N prompts, D text dimension, A positions of all levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vfm_ops.detect.yolo_world.backbone import STRIDES, Size
from vfm_ops.detect.yolo_world.layers import BN_EPS, BN_MOMENTUM, ConvBn

# Distances to a box's sides are distributions over 0..15 strides (Generalized Focal Loss, Li et al. 2020).
DISTANCE_BINS = 16
# The published models were trained with batches of 80 prompts; no level's classifier is narrower than that.
MIN_CLASS_CHANNELS = 80


class BnContrast(nn.Module):
    """Similarity of v2: s * <BN(x), text / |text|> + b with s = exp(logit_scale); v1 normalises x instead of BN."""

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(text_dim, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.bias = nn.Parameter(torch.zeros(()))
        self.logit_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, text_BND: Tensor) -> Tensor:
        """x: (B, D, H, W) -> logits (B, N, H, W)."""
        similarity = torch.einsum("bdhw,bnd->bnhw", self.norm(x), normalize(text_BND, dim=-1))
        return similarity * self.logit_scale.exp() + self.bias


class HeadModule(nn.Module):
    """One classifier and one box regressor a level."""

    def __init__(self, size: Size, text_dim: int) -> None:
        super().__init__()
        class_channels = max(size.levels[0], MIN_CLASS_CHANNELS)
        box_channels = max(16, size.levels[0] // 4, 4 * DISTANCE_BINS)
        self.cls_preds = nn.ModuleList(_branch(c, class_channels, text_dim) for c in size.levels)
        self.reg_preds = nn.ModuleList(_branch(c, box_channels, 4 * DISTANCE_BINS) for c in size.levels)
        self.cls_contrasts = nn.ModuleList(BnContrast(text_dim) for _ in size.levels)

    def forward(self, features: tuple[Tensor, ...], text_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the three levels -> logits (B, A, N) and boxes (B, A, 4), xyxy in pixels of the network's input."""
        logits, boxes = [], []
        for level, x in enumerate(features):
            logits_BNHW = self.cls_contrasts[level](self.cls_preds[level](x), text_BND)
            logits.append(logits_BNHW.flatten(2).transpose(1, 2))
            boxes.append(decode_boxes(self.reg_preds[level](x), STRIDES[level]))
        return torch.cat(logits, dim=1), torch.cat(boxes, dim=1)


class Head(nn.Module):
    """Holds the head module under the name that the published weights give it."""

    def __init__(self, size: Size, text_dim: int) -> None:
        super().__init__()
        self.head_module = HeadModule(size, text_dim)


def _branch(channels_in: int, channels: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBn(channels_in, channels, 3), ConvBn(channels, channels, 3), nn.Conv2d(channels, channels_out, 1)
    )


def decode_boxes(distances: Tensor, stride: int) -> Tensor:
    """Logits (B, 4 * bins, H, W) of the distances left, top, right, bottom -> boxes (B, H * W, 4), xyxy in pixels.

    A distance is the mean of its distribution, in strides, from the centre of its cell.
    """
    batch, _, height, width = distances.shape
    probabilities = distances.float().unflatten(1, (4, DISTANCE_BINS)).softmax(dim=2)
    bins = torch.arange(DISTANCE_BINS, dtype=torch.float32, device=distances.device)
    sides_B4HW = torch.einsum("bskhw,k->bshw", probabilities, bins)
    y, x = torch.meshgrid(
        torch.arange(height, device=distances.device) + 0.5,
        torch.arange(width, device=distances.device) + 0.5,
        indexing="ij",
    )
    left, top, right, bottom = sides_B4HW.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1).reshape(batch, -1, 4) * stride
