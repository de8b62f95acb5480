"""The one interface of all detectors. A family tells how many prompts fit one pass, and what it sees in a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from vfm_ops.detect.postprocess import Candidates, merge, select
from vfm_ops.detect.prompts import Prompts, check_threshold_names, prompts_per_image, threshold_of_each
from vfm_ops.detect.tiles import Tiles, detect_in_tiles
from vfm_ops.detect.types import Detections
from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vfm_ops.models.runtime import Precision, RuntimeName

# Boxes of one image.
MAX_DETECTIONS, MAX_IN_TILES = 300, 3000


def check_image(image: np.ndarray, where: str) -> None:
    """Raise UsageError unless `image` is a non-empty uint8 array of shape (H, W, 3)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        raise UsageError(f"{where} has shape {shape} and dtype {dtype}: give uint8 arrays of H x W x 3, RGB")
    if 0 in image.shape:
        raise UsageError(f"{where} is empty: its shape is {image.shape}")


class Detector(ABC):
    """Text prompts and images in, boxes out. Built by `vfm_ops.detect.load_detector`."""

    family: ClassVar[str]
    # Least score where nobody asks for another, and where the authors (or their port) set it: the scales of the families'
    # scores differ, so one number for all would drop what one finds and keep what another guesses.
    default_threshold: ClassVar[float]
    threshold_source: ClassVar[str]
    multi_label: bool = False  # set by `load_detector`, for families that can

    def __init__(self, device: torch.device, autocast: torch.dtype | None, batch_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}: it must be at least 1")
        self.device = device
        self.autocast = autocast
        self.batch_size = batch_size
        self.see: Callable[[Tensor], tuple[Tensor, ...]]  # `image_network`, or the same in a faster runtime

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: torch.device, autocast: torch.dtype | None, batch_size: int
    ) -> Self:
        """The detector of a checkpoint; a family whose weights are no folder of transformers has its own."""
        return cls(checkpoint.folder, device, autocast, batch_size)  # type: ignore[arg-type, call-arg]

    def image_network(self) -> tuple[nn.Module, np.ndarray] | None:
        """What sees the pictures and no prompt: a module of pixels (B, 3, H, W) that returns a tuple, and an example of them.

        None where a picture's shape is not the model's, so that no static graph could be made of it.
        """
        return None

    def compile_images(self, runtime: RuntimeName, precision: Precision, digest: str) -> None:
        """Has `see` computed by the fastest faithful runtime. digest: of the weights."""
        from vfm_ops.models.runtime import compile_for_tensors

        made = self.image_network()
        if made is None:
            return
        module, example = made
        key = f"{self.family}-images-{digest}"
        self.see = compile_for_tensors(
            module, example, device=str(self.device), runtime=runtime, precision=precision, cache_key=key
        )

    def detect(
        self,
        images: Sequence[np.ndarray],
        prompts: Prompts,
        *,
        thresholds: float | Mapping[str, float] | None = None,
        nms_iou: float | None = 0.7,
        max_detections: int | None = None,
        clip: bool = True,
        tiles: Tiles | None = None,
    ) -> list[Detections]:
        """Find what the prompts name.

        images: uint8 H x W x 3 RGB, sizes may differ. prompts: one vocabulary for all images (a string such as
        `"person . bicycle ."`, or a list), or a list of lists, one an image. thresholds: lowest score to keep, for all
        or by prompt; None is the family's own. nms_iou: boxes of one prompt that overlap more are suppressed; None
        keeps all. clip: cut boxes at the image's border and drop what lies outside. tiles: look at overlapping tiles of
        each image too, for small things in large pictures; boxes are clipped. Scores come best first, at most
        max_detections an image: 300 by default, 3,000 with tiles. Raises UsageError for wrong images, prompts or thresholds.
        """
        for i, image in enumerate(images):
            check_image(image, f"images[{i}]")
        if max_detections is None:
            max_detections = MAX_DETECTIONS if tiles is None else MAX_IN_TILES
        check_limits(nms_iou, max_detections)
        vocabularies = prompts_per_image(prompts, len(images))
        check_threshold_names(thresholds, vocabularies)
        if tiles is not None:
            return [
                self._in_tiles(image, own, tiles, thresholds, nms_iou, max_detections)
                for image, own in zip(images, vocabularies)
            ]
        results = []
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            found = self._all_passes(list(images[batch]), vocabularies[batch])
            for image, own, candidates in zip(images[batch], vocabularies[batch], found):
                limits = threshold_of_each(own, thresholds, self.default_threshold)
                size = (image.shape[0], image.shape[1])
                results.append(select(candidates, own, limits, size, nms_iou, max_detections, clip))
        return results

    def _in_tiles(
        self,
        image: np.ndarray,
        prompts: list[str],
        tiles: Tiles,
        thresholds: float | Mapping[str, float] | None,
        nms_iou: float | None,
        max_detections: int,
    ) -> Detections:
        # An image of its own vocabulary may lack prompts that a mapping names.
        own = {p: v for p, v in thresholds.items() if p in prompts} if isinstance(thresholds, Mapping) else thresholds

        def detect(parts: Sequence[np.ndarray]) -> list[Detections]:
            return self.detect(parts, [prompts] * len(parts), thresholds=own, nms_iou=nms_iou)

        return detect_in_tiles(image, tiles, detect, nms_iou or 1.0, max_detections, self.batch_size)

    def _all_passes(self, images: list[np.ndarray], vocabularies: list[list[str]]) -> list[Candidates]:
        """Run the k-th part of every image's vocabulary as one batch; images with shorter vocabularies drop out."""
        import torch

        parts = [self._vocabulary_parts(own) for own in vocabularies]
        found: list[list[Candidates]] = [[] for _ in images]
        for k in range(max(len(p) for p in parts)):
            rows = [i for i, p in enumerate(parts) if k < len(p)]
            texts = [[vocabularies[i][j] for j in parts[i][k]] for i in rows]
            with self._inference():
                seen = self._candidates([images[i] for i in rows], texts)
            for i, candidates in zip(rows, seen):
                index = torch.as_tensor(parts[i][k], device=candidates.prompt.device)
                candidates.prompt = index[candidates.prompt]
                found[i].append(candidates)
        return [merge(f) for f in found]

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        enabled = self.autocast is not None
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.autocast, enabled=enabled):
            yield

    def _vocabulary_parts(self, prompts: list[str]) -> list[list[int]]:
        """Positions of the prompts that go together through the model; one part unless the text window is too short."""
        return [list(range(len(prompts)))]

    @abstractmethod
    def _candidates(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        """One forward pass over images with their prompts; each box of the result has one prompt."""


def check_limits(nms_iou: float | None, max_detections: int) -> None:
    """Raise UsageError for an overlap outside (0, 1], or a limit below 1."""
    if nms_iou is not None and not 0.0 < nms_iou <= 1.0:
        raise UsageError(f"nms_iou is {nms_iou!r}: give a number above 0 and at most 1, or None for no suppression")
    if max_detections < 1:
        raise UsageError(f"max_detections is {max_detections}: it must be at least 1")


def pack_by_tokens(token_counts: Sequence[int], room: int) -> list[list[int]]:
    """Fill parts greedily, in order, so that no part's tokens exceed `room`; every prompt must fit by itself."""
    parts: list[list[int]] = []
    used = room + 1
    for i, count in enumerate(token_counts):
        if used + count > room:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += count
    return parts
