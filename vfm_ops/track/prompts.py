"""Prompts as a user gives them (pixels of the video) and as SAM's prompt encoder wants them (pixels of the model)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vfm_ops.errors import UsageError

BOX_CORNER_LABELS = (2, 3)


@dataclass(frozen=True)
class Clicks:
    """Points in pixels of the model's square input. points: (P, 2) float32 xy. labels: (P,) int64: 1 on the object,
    0 off it, 2 and 3 a box's top-left and bottom-right corners."""

    points: np.ndarray
    labels: np.ndarray

    def followed_by(self, later: Clicks) -> Clicks:
        """Both in order, as when a user refines what was clicked before on the same frame."""
        return Clicks(np.concatenate([self.points, later.points]), np.concatenate([self.labels, later.labels]))


@dataclass(frozen=True)
class Prompt:
    """What a user says about one object on one frame: points and / or a box, or a mask.

    object_id: any integer; an unknown one starts a new object. points: (P, 2) xy in pixels of the frame, labels: (P,)
    of 1 (on the object) and 0 (off it). box: xyxy in pixels. mask: bool (H, W) of the frame's size. append: refine the
    clicks already made on this frame rather than replace them.
    """

    object_id: int
    points: np.ndarray | Sequence[Sequence[float]] | None = None
    labels: np.ndarray | Sequence[int] | None = None
    box: np.ndarray | Sequence[float] | None = None
    mask: np.ndarray | None = None
    append: bool = False

    def __post_init__(self) -> None:
        who = f"the prompt for object {self.object_id}"
        if self.points is None and self.box is None and self.mask is None:
            raise UsageError(f"{who} is empty: give points, a box or a mask")
        if self.mask is not None and (self.points is not None or self.box is not None):
            raise UsageError(f"{who} has a mask and points or a box: give one or the other")
        if (self.points is None) != (self.labels is None):
            raise UsageError(f"{who} needs points and labels together, one label (1 on the object, 0 off) a point")
        if self.append and (self.box is not None or self.mask is not None):
            raise UsageError(f"{who}: only points can be appended to earlier clicks; a box or mask replaces them")


def clicks_in_model_pixels(prompt: Prompt, height: int, width: int, image_size: int) -> Clicks | None:
    """A point or box prompt checked against a frame of (height, width) and scaled to the model's square input.

    Returns None for a mask prompt. Raises UsageError for NaN, a wrong shape, an unknown label, a point outside the
    frame, or a box that is empty or lies outside it; a box that sticks out is clipped to the frame.
    """
    if prompt.mask is not None:
        return None
    who = f"the prompt for object {prompt.object_id}"
    points = np.zeros((0, 2), np.float32)
    labels = np.zeros(0, np.int64)
    if prompt.points is not None:
        points, labels = checked_points(prompt, who, height, width)
    if prompt.box is not None:
        corners = checked_box(prompt.box, who, height, width).reshape(2, 2)
        points = np.concatenate([corners, points])
        labels = np.concatenate([np.array(BOX_CORNER_LABELS, np.int64), labels])
    scale = np.array([image_size / width, image_size / height], np.float32)
    return Clicks((points * scale).astype(np.float32), labels)


def checked_mask(prompt: Prompt, height: int, width: int) -> np.ndarray:
    """The mask of a mask prompt as bool (height, width); UsageError for another size or an empty mask."""
    mask = np.asarray(prompt.mask)
    if mask.shape != (height, width):
        raise UsageError(
            f"the mask for object {prompt.object_id} has shape {mask.shape} but the frame is {height} x {width} "
            "(height x width): resize the mask to the frame"
        )
    if not mask.any():
        raise UsageError(f"the mask for object {prompt.object_id} has no pixel set: leave the object out instead")
    return mask.astype(bool)


def checked_box(box: np.ndarray | Sequence[float], who: str, height: int, width: int) -> np.ndarray:
    """An xyxy box clipped to the frame, float32 (4,); UsageError when it has NaN, no area, or lies outside."""
    xyxy = np.asarray(box, np.float32).reshape(-1)
    if xyxy.shape != (4,) or not np.isfinite(xyxy).all():
        raise UsageError(f"{who} has the box {xyxy.tolist()}: give four finite numbers x1, y1, x2, y2")
    if xyxy[2] <= xyxy[0] or xyxy[3] <= xyxy[1]:
        raise UsageError(f"{who} has the empty box {xyxy.tolist()}: x2 must exceed x1 and y2 must exceed y1")
    if xyxy[0] >= width or xyxy[1] >= height or xyxy[2] <= 0 or xyxy[3] <= 0:
        raise UsageError(f"{who} has the box {xyxy.tolist()}, which lies outside the {width} x {height} frame")
    return np.clip(xyxy, 0, np.array([width, height, width, height], np.float32))


def checked_points(prompt: Prompt, who: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A prompt's points, float32 (P, 2), and labels, int64 (P,); UsageError when one is wrong or off the frame."""
    points = np.asarray(prompt.points, np.float32)
    labels = np.asarray(prompt.labels, np.int64).reshape(-1)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise UsageError(f"{who} has points of shape {points.shape}: give one (x, y) pair a point")
    if len(labels) != len(points):
        raise UsageError(f"{who} has {len(points)} points but {len(labels)} labels: give one label a point")
    if not np.isfinite(points).all():
        raise UsageError(f"{who} has a point that is not a number: {points.tolist()}")
    if not np.isin(labels, (0, 1)).all():
        raise UsageError(f"{who} has the labels {labels.tolist()}: a label is 1 (on the object) or 0 (off it)")
    outside = (points < 0).any(axis=1) | (points[:, 0] > width) | (points[:, 1] > height)
    if outside.any():
        raise UsageError(f"{who} has the point {points[outside][0].tolist()} outside the {width} x {height} frame")
    return points, labels
