"""Frames in, masks out: a decoder's uint8 frame -> the model's normalised square, and what a tracked frame returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.errors import MediaError, UsageError


def squared(rgb: np.ndarray, image_size: int, device: str | torch.device = "cpu") -> Tensor:
    """A frame as SAM 2 sees it: a square whatever its shape (bilinear, antialiased).

    rgb: uint8 (H, W, 3). Returns uint8 (1, S, S, 3); the mean and standard deviation are in the image encoder.
    """
    from torchvision.transforms.v2 import functional as TF

    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].to(device)
    pixels = TF.resize(pixels, [image_size, image_size], TF.InterpolationMode.BILINEAR, antialias=True)
    return pixels.permute(0, 2, 3, 1).contiguous()


def checked_rgb(rgb: np.ndarray) -> np.ndarray:
    """The frame itself; UsageError unless it is uint8 (H, W, 3) with a pixel in it."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        found = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise UsageError(f"a frame must be a uint8 array of shape (height, width, 3), RGB; this one is {found}")
    return rgb


def aspect_changed(known: tuple[int, int] | None, size: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) differ in shape by more than 1 %: the model sees a square, and would not know."""
    return known is not None and abs((size[0] * known[1]) / (size[1] * known[0]) - 1) > 0.01


def check_resolution(known: tuple[int, int] | None, frame: tuple[int, int], frame_index: int) -> None:
    """A stream may change its resolution (adaptive streaming does) but not its shape.

    known, frame: (height, width). Raises MediaError('resolution_change') when the shape is another one.
    """
    if known is not None and aspect_changed(known, frame):
        raise MediaError(
            "resolution_change",
            f"frame {frame_index} is {frame[1]} x {frame[0]} but the video began as {known[1]} x {known[0]}: "
            "start a new tracker at the change, or resize the frames",
        )


@dataclass(frozen=True)
class FrameMasks:
    """The objects of one frame, in the order in which they were first prompted.

    logits_Nhw: float32 mask logits at a quarter of the model's input. object_logits_N: object score logits, positive
    where the object is on the frame. iou_N: predicted IoU of each mask. size: (height, width) of the frame.
    non_overlap_masks: a pixel is of one object, the one with the highest logit.
    """

    frame_index: int
    object_ids: list[int]
    logits_Nhw: Tensor
    object_logits_N: Tensor
    iou_N: Tensor
    size: tuple[int, int]
    non_overlap_masks: bool = False

    @property
    def visible(self) -> np.ndarray:
        """bool (N,): whether the model thinks that the object is on the frame."""
        return (self.object_logits_N > 0).cpu().numpy()

    @property
    def scores(self) -> np.ndarray:
        """float32 (N,) in 0-1: probability that the object is there, times the predicted IoU of its mask."""
        return (self.object_logits_N.sigmoid() * self.iou_N.clamp(0, 1)).cpu().numpy()

    def logits(self, at_once: int = 16) -> Iterator[Tensor]:
        """Mask logits on the frame (bilinear), float32 (n, height, width), at most `at_once` objects at a time.

        Where masks must not overlap, those of all but the most certain object are at most -10 (as in SAM 2).
        """
        resized = (self._resized(start, at_once) for start in range(0, len(self.object_ids), at_once))
        if not self.non_overlap_masks or len(self.object_ids) < 2:
            yield from resized
            return
        owner, best = torch.zeros(self.size, dtype=torch.int64), torch.full(self.size, -torch.inf)
        for k, full in enumerate(resized):
            value, which = full.cpu().max(0)
            owner = torch.where(value > best, which + k * at_once, owner)
            best = torch.maximum(best, value)
        for start in range(0, len(self.object_ids), at_once):
            full = self._resized(start, at_once)
            own = torch.arange(start, start + len(full))[:, None, None] == owner
            yield torch.where(own.to(full.device), full, full.clamp(max=-10.0))

    def masks(self, at_once: int = 16) -> np.ndarray:
        """bool (N, height, width): logits resized to the frame (bilinear) and cut at 0."""
        parts = [(full > 0).cpu().numpy() for full in self.logits(at_once)]
        return np.concatenate(parts) if parts else np.zeros((0, *self.size), bool)

    def mask(self, object_id: int) -> np.ndarray:
        """bool (height, width) of one object; UsageError when it is not tracked."""
        if object_id not in self.object_ids:
            raise UsageError(f"object {object_id} is not tracked on frame {self.frame_index}: {self.object_ids}")
        at = self.object_ids.index(object_id)
        if self.non_overlap_masks:
            return self.masks()[at]
        return (self._resized(at, 1)[0] > 0).cpu().numpy()

    def _resized(self, start: int, count: int) -> Tensor:
        logits = self.logits_Nhw[start : start + count, None]
        return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)[:, 0]
