"""How good a frame is: sharpness, luminance, contrast, entropy; frames below a bound are dropped, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vfm_ops import op
from vfm_ops.media.quality import frame_quality

MEASURES = ("sharpness", "luminance", "contrast", "entropy")


class QualitySettings(op.Settings):
    """Bounds; None: none."""

    min_sharpness: float | None = Field(None, ge=0)  # variance of the Laplacian, in squared grey levels
    min_luminance: float | None = Field(None, ge=0, le=1)  # mean, 0 black to 1 white
    max_luminance: float | None = Field(None, ge=0, le=1)
    min_contrast: float | None = Field(None, ge=0, le=0.5)  # standard deviation of luminance
    min_entropy: float | None = Field(None, ge=0, le=8)  # bits of the luminance histogram


class Quality(op.Op):
    """Four measures of a frame, from a grey picture with a longer side of 256 pixels. See `vfm_ops.media.quality`."""

    name = "quality"
    adds: ClassVar = {"quality": pa.struct([(name, pa.float32()) for name in MEASURES])}
    needs = op.View(fit="luma")
    bounds = tuple(QualitySettings.model_fields)
    Settings = QualitySettings

    def run(self, images: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """images: uint8 luma (h, w, 1) each. Returns the measures."""
        return [frame_quality(luma[..., 0]) for luma in images]

    def keep(self, quality: list[dict[str, float]]) -> list[str | None]:
        """Why a frame is dropped: the first bound that it breaks."""
        return [self._reason(row) for row in quality]

    def _reason(self, row: dict[str, Any]) -> str | None:
        for setting, bound in self.settings.model_dump(exclude_none=True).items():
            side, measure = setting.split("_", 1)
            if row[measure] < bound if side == "min" else row[measure] > bound:
                return f"{measure} {'below' if side == 'min' else 'above'} {bound:g}"
        return None
