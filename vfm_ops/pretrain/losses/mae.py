"""MAE's reconstruction error on masked patches. He et al. 2022, section 3 (reconstruction target)."""

from __future__ import annotations

from torch import Tensor


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, L, patch * patch * C), rows first, channels fastest: the order of MAE's decoder output."""
    batch, channels, height, width = image_BCHW.shape
    grid = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BLP: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Inverse of `patchify` for an image of height x width pixels."""
    batch, _, size = patches_BLP.shape
    channels = size // patch**2
    grid = patches_BLP.reshape(batch, height // patch, width // patch, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def patch_statistics(target_BLP: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (B, L, 1): unbiased variance, eps inside the root, as in the paper's code."""
    return target_BLP.mean(-1, keepdim=True), (target_BLP.var(-1, keepdim=True, unbiased=True) + eps).sqrt()


def mae_loss(predicted_BLP: Tensor, target_BLP: Tensor, mask_BL: Tensor, norm_pix_loss: bool = True) -> Tensor:
    """Mean squared error over masked patches only.

    target_BLP: pixels from `patchify`; norm_pix_loss normalises each patch by its own statistics first. mask_BL: bool,
    True where masked. Returns a scalar, about 1 at the start with norm_pix_loss.
    """
    if norm_pix_loss:
        mean_BL1, std_BL1 = patch_statistics(target_BLP)
        target_BLP = (target_BLP - mean_BL1) / std_BL1
    error_BL = (predicted_BLP - target_BLP).square().mean(-1)
    masked_BL = mask_BL.to(error_BL.dtype)
    return (error_BL * masked_BL).sum() / masked_BL.sum()
