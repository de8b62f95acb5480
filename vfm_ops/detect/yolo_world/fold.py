"""Prompt-then-detect (paper, section 3.4): a vocabulary becomes convolution weights, and the text is gone.

The head's classifier ends in linear maps only (1 x 1 convolution, batch norm in evaluation, product with the text,
scale, bias), so all of it is one 1 x 1 convolution from its channels to N prompts. The neck's guide is a grouped
1 x 1 convolution, one group a head. Batch norms go into the convolutions before them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, normalize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vfm_ops.detect.yolo_world.head import BnContrast
from vfm_ops.detect.yolo_world.layers import ConvBn
from vfm_ops.detect.yolo_world.neck import HEAD_CHANNELS, MaxSigmoidAttention, gate
from vfm_ops.detect.yolo_world.network import YoloWorldNetwork


class FoldedAttention(nn.Module):
    """Max-sigmoid attention with a fixed guide, (M * N, C, 1, 1), already divided by sqrt(C)."""

    def __init__(self, online: MaxSigmoidAttention, text_ND: Tensor) -> None:
        super().__init__()
        self.heads = online.heads
        self.bias = online.bias
        self.project_conv = online.project_conv
        guide_NMC = online.guide_fc(text_ND).unflatten(-1, (online.heads, HEAD_CHANNELS)) / HEAD_CHANNELS**0.5
        self.register_buffer("guide", guide_NMC.transpose(0, 1).reshape(-1, HEAD_CHANNELS, 1, 1).contiguous())

    def forward(self, x: Tensor, text_BND: Tensor, valid_BN: Tensor) -> Tensor:
        score_BMHW = conv2d(x, self.guide, groups=self.heads).unflatten(1, (self.heads, -1)).amax(dim=2)
        return gate(self.project_conv(x), score_BMHW, self.bias)


class _AlreadyLogits(nn.Module):
    """Stands where the contrast was: the classifier before it gives logits by itself."""

    def forward(self, logits: Tensor, text_BND: Tensor) -> Tensor:
        return logits


@torch.no_grad()
def fold_vocabulary(network: YoloWorldNetwork, text_ND: Tensor) -> YoloWorldNetwork:
    """A copy of the network for one vocabulary; it ignores its text input. Equal to the online one within 1e-4.

    text_ND: the prompts' embeddings, float32, L2-normalised. The network must be in evaluation mode.
    """
    folded = copy.deepcopy(network).eval()
    for layer in [*folded.neck.top_down_layers, *folded.neck.bottom_up_layers]:
        layer.attn_block = FoldedAttention(layer.attn_block, text_ND)
    head = folded.bbox_head.head_module
    for level, contrast in enumerate(head.cls_contrasts):
        head.cls_preds[level][2] = folded_classifier(head.cls_preds[level][2], contrast, text_ND)
        head.cls_contrasts[level] = _AlreadyLogits()
    for module in folded.modules():
        if isinstance(module, ConvBn):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return folded.requires_grad_(False)


def folded_classifier(last: nn.Conv2d, contrast: BnContrast, text_ND: Tensor) -> nn.Conv2d:
    """1 x 1 convolution that gives the logits of all prompts; computed in float64, where nothing is lost.

    With BN(y) = g * (y - mean) + beta: W = s T diag(g) W_last, b = s T (g (b_last - mean) + beta) + bias.
    """
    norm = contrast.norm
    gain_D = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    scaled_ND = normalize(text_ND.double(), dim=-1) * contrast.logit_scale.double().exp()
    weight_DC = last.weight.double().flatten(1)
    offset_D = gain_D * (last.bias.double() - norm.running_mean.double()) + norm.bias.double()
    conv = nn.Conv2d(last.in_channels, len(text_ND), 1).to(last.weight)
    conv.weight.copy_((scaled_ND @ (gain_D[:, None] * weight_DC))[:, :, None, None])
    conv.bias.copy_(scaled_ND @ offset_D + contrast.bias.double())
    return conv
