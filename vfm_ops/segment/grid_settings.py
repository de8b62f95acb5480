"""What everything mode asks and keeps: one list of settings for Python, recipes, the command line and HTTP.

Names are Meta's (`SamAutomaticMaskGenerator`), but for min_iou (pred_iou_thresh), min_stability (stability_score_thresh),
stability_offset (stability_score_offset), max_overlap (box_nms_thresh) and points_at_once (points_per_batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vfm_ops.errors import UsageError

Share = Annotated[float, Field(ge=0, le=1)]
GridPoint = tuple[Share, Share]


class GridFields(BaseModel):
    """The settings alone, for what extends them; a picture has 1 + 4 + 16 + ... crops with 0, 1, 2, ... `crop_n_layers`."""

    points_per_side: int = Field(32, ge=1, le=256, description="The grid of points is its square.")
    min_iou: Share = Field(0.88, description="Least predicted IoU.")
    min_stability: Share = Field(0.95, description="Least stability score.")
    max_overlap: Share = Field(0.7, description="Box IoU above which two masks are one.")
    min_area: int = Field(0, ge=0, le=100_000_000, description="Least pixels of a mask.")
    stability_offset: float = Field(
        1.0, ge=0, le=100, description="Stability is the IoU of the mask cut by so much above and below."
    )
    mask_threshold: float = Field(0.0, ge=-100, le=100, description="Logit above which a pixel is in the mask.")
    crop_n_layers: int = Field(0, ge=0, le=4, description="Look at 2 x 2 crops too, then 4 x 4, ...: small things.")
    crop_nms_thresh: Share = Field(0.7, description="As max_overlap, between crops; the smaller crop's mask stays.")
    crop_overlap_ratio: float = Field(
        512 / 1500, ge=0, lt=1, description="Overlap of the 2 x 2 crops, as a share of the shorter side."
    )
    crop_n_points_downscale_factor: int = Field(
        1, ge=1, le=256, description="Each layer of crops has a grid coarser by this."
    )
    min_mask_region_area: int = Field(
        0, ge=0, le=100_000_000, description="Holes and islands of fewer pixels are mended."
    )
    use_m2m: bool = Field(False, description="Refine each mask by feeding it back once.")
    point_grids: list[list[GridPoint]] | None = Field(
        None, description="A grid for each layer, instead of points_per_side: x, y from 0 to 1."
    )

    @model_validator(mode="after")
    def _a_grid_a_layer(self) -> GridFields:
        if self.point_grids is not None and len(self.point_grids) <= self.crop_n_layers:
            raise ValueError(
                f"point_grids has {len(self.point_grids)} grids: {self.crop_n_layers} layers of crops "
                f"and the whole picture need {self.crop_n_layers + 1}"
            )
        return self

    def points(self, layer: int) -> np.ndarray:
        """float64 (N, 2) xy from 0 to 1: the grid of a layer of crops, 0 being the whole picture."""
        if self.point_grids is not None:
            return np.asarray(self.point_grids[layer], np.float64).reshape(-1, 2)
        return point_grid(math.floor(self.points_per_side / self.crop_n_points_downscale_factor**layer))

    def prompts(self) -> int:
        """How many points a picture is asked about, crops included."""
        return sum(4**layer * len(self.points(layer)) for layer in range(self.crop_n_layers + 1))


class GridSettings(GridFields):
    """Settings of `generate_masks`; points_at_once: prompts decoded together, which bounds memory.

    Args:
        settings: see `GridFields`, by name.

    Raises:
        UsageError: a setting is unknown or out of range.

    Example:
        >>> GridSettings(crop_n_layers=1, points_per_side=16).points(1).shape
        (256, 2)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_at_once: int = Field(64, ge=1)

    def __init__(self, **settings: Any) -> None:
        if isinstance(settings.get("point_grids"), Sequence):
            grids = settings["point_grids"]
            settings["point_grids"] = [grid.tolist() if isinstance(grid, np.ndarray) else grid for grid in grids]
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UsageError(_sentence(error)) from error


def point_grid(points_per_side: int) -> np.ndarray:
    """float64 (points_per_side^2, 2) xy from 0 to 1: the centres of equal cells, row by row."""
    line = (np.arange(points_per_side, dtype=np.float64) + 0.5) / max(1, points_per_side)
    x, y = np.meshgrid(line, line)
    return np.stack([x.ravel(), y.ravel()], 1)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"everything mode has no setting {name}: it has {', '.join(GridSettings.model_fields)}"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"`{name}` is {first['input']}: it {reason}" if name else reason
