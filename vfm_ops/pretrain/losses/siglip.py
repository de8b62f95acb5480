"""SigLIP's pairwise sigmoid loss, gathered or around a ring. Zhai et al. 2023, eq. 1 and section 3.3.

The ring computes the loss and its gradients in the same pass: as the loss is a plain sum over pairs, each b x c block of
logits is made, used and dropped, and the gradients of a text travel on with the text until both are home again. So the
logits need b x c numbers, whatever the world size; a gather with autograd keeps B x N of them (and N x N when global).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.collective import all_gather_with_grad, rank, ring_shift, world_size

SiglipExchange = Literal["ring", "gather"]


def siglip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    bias: Tensor,
    exchange: SiglipExchange = "ring",
    chunk: int = 1024,
) -> Tensor:
    """-1/B sum over pairs of log sigmoid(z (scale * image . text + bias)), z = 1 for a pair that belongs together, else -1.

    image_BD, text_BD: L2-normalised, float. scale: scalar, already exponentiated; bias: scalar. chunk: texts a block of
    logits holds at most. Each rank takes its images against the texts of all ranks. Returns a scalar.
    """
    if exchange == "ring":
        return _RingSigmoid.apply(image_BD, text_BD, scale, bias, chunk)
    logits_BN = scale * image_BD @ all_gather_with_grad(text_BD).T + bias
    sign_BN = torch.full_like(logits_BN, -1.0)
    own = torch.arange(len(image_BD), device=image_BD.device)
    sign_BN[own, own + rank() * len(image_BD)] = 1.0
    return -F.logsigmoid(sign_BN * logits_BN).sum() / len(image_BD)


class _RingSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
        image_BD, text_BD = image_BD.detach(), text_BD.detach()
        grad_image_BD, grad_text_BD = torch.zeros_like(image_BD), torch.zeros_like(text_BD)
        scalars = torch.zeros(3, dtype=image_BD.dtype, device=image_BD.device)  # loss, d scale, d bias
        for turn in range(world_size()):
            for start in range(0, len(text_BD), chunk):
                block = slice(start, start + chunk)
                scalars += _block(
                    image_BD,
                    text_BD[block],
                    grad_image_BD,
                    grad_text_BD[block],
                    scale,
                    bias,
                    start if turn == 0 else None,
                )
            text_BD, grad_text_BD = ring_shift(text_BD, grad_text_BD)
        ctx.save_for_backward(grad_image_BD, grad_text_BD, scalars[1], scalars[2])
        ctx.shapes = scale.shape, bias.shape
        return scalars[0].clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        # Every rank's loss reaches this rank's texts, all weighted alike by the caller (an average over ranks).
        image_BD, text_BD, scale, bias = ctx.saved_tensors
        scale_shape, bias_shape = ctx.shapes
        return (
            grad * image_BD,
            grad * text_BD,
            (grad * scale).reshape(scale_shape),
            (grad * bias).reshape(bias_shape),
            None,
        )


def _block(
    image_BD: Tensor,
    text_CD: Tensor,
    grad_image_BD: Tensor,
    grad_text_CD: Tensor,
    scale: Tensor,
    bias: Tensor,
    own: int | None,
) -> Tensor:
    """Loss and gradients of one block, adding to the gradients in place. own: first image whose text is in the block."""
    batch = len(image_BD)
    dot_BC = image_BD @ text_CD.T
    logits_BC = scale * dot_BC + bias
    # -log sigmoid(z l) = softplus(-z l); for z = 1 it is softplus(l) - l.
    loss = F.softplus(logits_BC).sum()
    slope_BC = torch.sigmoid(logits_BC)
    if own is not None:
        column = torch.arange(len(text_CD), device=image_BD.device)
        loss = loss - logits_BC[column + own, column].sum()
        slope_BC[column + own, column] -= 1
    slope_BC /= batch
    grad_image_BD += scale * slope_BC @ text_CD
    grad_text_CD += scale * slope_BC.T @ image_BD
    return torch.stack([loss / batch, (slope_BC * dot_BC).sum(), slope_BC.sum()])
