"""A 64-bit perceptual hash of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vfm_ops import op
from vfm_ops.media.phash import phash


class PerceptualHash(op.Op):
    """Near-copies differ in few bits of it. See `vfm_ops.media.phash`."""

    name = "phash"
    adds: ClassVar = {"phash": pa.uint64()}
    needs = op.View(fit="luma")

    def run(self, images: Sequence[np.ndarray]) -> list[int]:
        """images: uint8 luma (h, w, 1) each."""
        return [phash(luma[..., 0]) for luma in images]
