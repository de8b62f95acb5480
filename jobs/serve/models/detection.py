"""Detection replicas: text prompts and images in, boxes out."""

from __future__ import annotations

import asyncio
from typing import Any

from jobs.serve.models.loading import LoadedModel
from jobs.serve.settings import ModelChoice, RequestLimits
from jobs.serve.uploads import Decoder


class Detection:
    """The deployment of one detector."""

    def __init__(self, choice: dict[str, Any], limits: dict[str, Any]) -> None:
        from vfm_ops.detect import load_detector

        chosen = ModelChoice(**choice)
        self._decoder = Decoder(RequestLimits(**limits).media())
        self._detector = LoadedModel(
            lambda: load_detector(chosen.spec, device=chosen.device, precision=chosen.precision), chosen.is_eager
        )
        self._one_at_a_time = asyncio.Lock()

    async def detect(
        self, images: list[bytes], prompts: list[str], threshold: float | None, most: int
    ) -> list[dict[str, Any]]:
        """For each image its width, height and `detections` (label, score, box xyxy in pixels), best first. MediaError."""
        detector = await self._detector.get()
        pixels = await asyncio.to_thread(self._decoder.pixels, images)
        async with self._one_at_a_time:
            found = await asyncio.to_thread(detector.detect, pixels, prompts, thresholds=threshold, max_detections=most)
        return [
            {
                "width": rgb.shape[1],
                "height": rgb.shape[0],
                "detections": [
                    {"label": label, "score": float(score), "box": [float(v) for v in box]}
                    for label, score, box in zip(one.labels, one.scores, one.boxes)
                ],
            }
            for rgb, one in zip(pixels, found)
        ]

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()
