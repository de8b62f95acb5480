"""What a detector gives back: one `Detections` an image. Plain numpy, so that workers without torch can read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Boxes found on one image, best first; every box belongs to exactly one prompt.

    boxes: float32 (N, 4), xyxy in pixels of the image that was given. scores: float32 (N,), in [0, 1].
    prompt_index: int64 (N,), position in `prompts`. prompts: what was looked for on this image, without duplicates.
    """

    boxes: np.ndarray
    scores: np.ndarray
    prompt_index: np.ndarray
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> list[str]:
        """The prompt of each box, in the order of `boxes`."""
        return [self.prompts[i] for i in self.prompt_index]
