"""The whole network. Its state dict has the key names of the published YOLO-World-v2 weights, text encoder aside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm_ops.detect.yolo_world.backbone import CspDarknet, Size
from vfm_ops.detect.yolo_world.head import Head
from vfm_ops.detect.yolo_world.neck import RepVlPan

TEXT_DIM = 512


class _Backbone(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.image_model = CspDarknet(size)


class YoloWorldNetwork(nn.Module):
    """Images and text embeddings in, logits and boxes out.

    Parameters without the text encoder (text_dim 512): s 12.8 M, m 28.4 M, l 46.8 M.
    """

    def __init__(self, size: Size, text_dim: int = TEXT_DIM) -> None:
        super().__init__()
        self.size = size
        self.text_dim = text_dim
        self.backbone = _Backbone(size)
        self.neck = RepVlPan(size, text_dim)
        self.bbox_head = Head(size, text_dim)

    def forward(self, images: Tensor, text_BND: Tensor, valid_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """images: float (B, 3, H, W) RGB in [0, 1], sides multiples of 32. text_BND: L2-normalised CLIP embeddings.
        valid_BN: bool, False for padded prompts, whose logits mean nothing; None when all are real.

        Returns logits (B, A, N) and boxes (B, A, 4), xyxy in pixels of `images`, A = H * W * (1/64 + 1/256 + 1/1024).
        """
        if valid_BN is None:
            valid_BN = torch.ones(text_BND.shape[:2], dtype=torch.bool, device=text_BND.device)
        features = self.neck(self.backbone.image_model(images), text_BND, valid_BN)
        return self.bbox_head.head_module(features, text_BND)
