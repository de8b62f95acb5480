"""Packing images of any aspect ratio into SigLIP 2's fixed number of patches (NaFlex)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vfm_ops.media.view import View


def pack(images: Sequence[np.ndarray], view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images: uint8 (h, w, 3) of whole patches, as `view.apply` makes them.

    Returns patches uint8 (B, N, P*P*3) in row order, mask int64 (B, N) with 1 on real patches, grids int64 (B, 2), N being
    view.max_patches. Raises ValueError for an image that is not of whole patches, or of too many.
    """
    p, limit = view.patch, view.max_patches
    patches = np.zeros((len(images), limit, p * p * 3), np.uint8)
    mask = np.zeros((len(images), limit), np.int64)
    grids = np.empty((len(images), 2), np.int64)
    for i, image in enumerate(images):
        rows, columns = image.shape[0] // p, image.shape[1] // p
        if image.shape != (rows * p, columns * p, 3) or not 0 < rows * columns <= limit:
            raise ValueError(
                f"image {i} of shape {image.shape} is not of 1..{limit} whole patches of {p} px: apply the view"
            )
        tiles = image.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
        patches[i, : rows * columns] = tiles.reshape(rows * columns, -1)
        mask[i, : rows * columns] = 1
        grids[i] = rows, columns
    return patches, mask, grids
