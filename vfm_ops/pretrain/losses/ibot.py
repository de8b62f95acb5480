"""iBOT's masked-patch self-distillation. Zhou et al. 2022, eq. 3; weighting as in DINOv2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses.precision import widen


def ibot_loss(
    student_MK: Tensor, teacher_MK: Tensor, weight_M: Tensor, images: int, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy at masked patches, averaged within each image, then over images.

    student_MK: logits at the masked patches; teacher_MK: target probabilities there (the teacher sees the whole image).
    weight_M: 1 / number of masked patches of the patch's image. images: images of this rank's batch, those without a mask
    too, so that the mean over ranks is the global batch's. Returns a scalar, 0 when nothing is masked.
    """
    log_student_MK = F.log_softmax(widen(student_MK) / temperature, dim=-1)
    per_patch_M = -(teacher_MK.detach().to(log_student_MK.dtype) * log_student_MK).sum(-1)
    return (per_patch_M * weight_M).sum() / max(images, 1)
