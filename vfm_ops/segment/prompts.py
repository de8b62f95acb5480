"""Prompts for a still image, checked and grouped so that those of one shape go through the decoder together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.track.prompts import Prompt, checked_box, checked_points


@dataclass(frozen=True)
class ImagePrompt:
    """One object asked for on an image, in pixels of the image. points: (P, 2) float32, labels: (P,) int64, box: (4,)
    float32 or None, mask: bool (H, W), or float (h, w) mask logits of an earlier answer, or None."""

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, bool, tuple[int, ...] | None, str]:
        """Prompts of one shape can be stacked."""
        mask = self.mask
        return (
            len(self.labels),
            self.box is not None,
            None if mask is None else mask.shape,
            str(getattr(mask, "dtype", "")),
        )


def image_prompts(
    size: tuple[int, int],
    points: Sequence[np.ndarray] | np.ndarray | None,
    labels: Sequence[np.ndarray] | np.ndarray | None,
    boxes: np.ndarray | None,
    mask_input: Sequence[np.ndarray] | np.ndarray | None,
) -> list[ImagePrompt]:
    """Checks `Segmenter.segment`'s arguments against an image of `size` (height, width). Raises UsageError."""
    given = {"points": points, "labels": labels, "boxes": boxes, "mask_input": mask_input}
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if not counts:
        raise UsageError("no prompt was given: pass points and labels, boxes or mask_input")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{n} {name}" for name, n in counts.items())
        raise UsageError(f"prompts don't match: {listed}; entry i of each belongs to object i")
    if (points is None) != (labels is None):
        raise UsageError("points need labels and labels need points: one label (1 on the object, 0 off) a point")
    return [
        _one(i, size, *(None if value is None else value[i] for value in given.values()))
        for i in range(next(iter(counts.values())))
    ]


def _one(
    i: int,
    size: tuple[int, int],
    points: np.ndarray | None,
    labels: np.ndarray | None,
    box: np.ndarray | None,
    mask: np.ndarray | None,
) -> ImagePrompt:
    who = f"prompt {i}"
    xy, on = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    if points is not None and labels is not None:
        xy, on = checked_points(Prompt(i, points=points, labels=labels), who, *size)
    corners = None if box is None else checked_box(box, who, *size)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.ndim != 2 or (mask.dtype == bool and mask.shape != size):
            raise UsageError(
                f"{who} has a mask of shape {mask.shape}: give a bool mask of the image's {size[0]} x {size[1]} "
                "(height x width), or float mask logits of an earlier answer"
            )
        if not np.isfinite(mask).all():
            raise UsageError(f"{who} has a mask with values that are not numbers")
    return ImagePrompt(xy, on, corners, mask)


def grouped(prompts: list[ImagePrompt], at_once: int) -> list[list[int]]:
    """Indices of prompts that can be stacked, in groups of at most `at_once`."""
    by_shape: dict[tuple, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_shape.setdefault(prompt.shape, []).append(i)
    return [rows[start : start + at_once] for rows in by_shape.values() for start in range(0, len(rows), at_once)]
