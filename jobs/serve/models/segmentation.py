"""Segmentation replicas: a session encodes its image once, every click is answered from that encoding."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.serve.models.loading import LoadedModel
from jobs.serve.sessions import HoldsSessions, Sessions
from jobs.serve.settings import ModelChoice, RequestLimits
from jobs.serve.uploads import Decoder
from vfm_ops.allocator import give_back_memory

if TYPE_CHECKING:
    from vfm_ops.segment.segmenter import EncodedImage, Segmenter

EXPIRY_CHECKS_S = 5.0


class Segmentation(HoldsSessions):
    """The deployment. A session's requests all reach the replica that holds its encoding (hashed by the session's id)."""

    def __init__(self, choice: dict[str, Any], limits: dict[str, Any]) -> None:
        from vfm_ops.segment.segmenter import load_segmenter

        chosen, limit = ModelChoice(**choice), RequestLimits(**limits)
        self._decoder = Decoder(limit.media())
        self._segmenter = LoadedModel(lambda: load_segmenter(chosen.spec, device=chosen.device), chosen.is_eager)
        self._sessions: Sessions[EncodedImage] = Sessions(limit.sessions, limit.session_s)
        self._one_at_a_time = asyncio.Lock()
        self._expiry = asyncio.get_running_loop().create_task(expire_for_ever(self._sessions))

    async def open(self, session: str, image: bytes) -> dict[str, Any]:
        """Encodes an image under a session's id. Returns its width, height and lifetime. MediaError; Problem 429."""
        segmenter = await self._segmenter.get()
        self._sessions.reserve()
        (rgb,) = await asyncio.to_thread(self._decoder.pixels, [image])
        async with self._one_at_a_time:
            encoded = await asyncio.to_thread(segmenter.encode, rgb)
        self._sessions.add(session, encoded)
        return {"width": rgb.shape[1], "height": rgb.shape[0], "expires_s": self._sessions.expires_s}

    async def segment(self, session: str, prompt: dict[str, Any], multimask: bool) -> list[dict[str, Any]]:
        """Candidates, best first: mask (COCO RLE), box, score. prompt: points, labels and / or box. UsageError; Problem 404."""
        segmenter, encoded = await self._segmenter.get(), self._sessions.get(session)
        async with self._one_at_a_time:
            return await asyncio.to_thread(_candidates, segmenter, encoded, prompt, multimask)

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()


def _candidates(
    segmenter: Segmenter, encoded: EncodedImage, prompt: dict[str, Any], multimask: bool
) -> list[dict[str, Any]]:
    from vfm_ops.track.masks import encode_rle, mask_box

    points, labels, box = (prompt.get(name) for name in ("points", "labels", "box"))
    found = segmenter.segment(
        encoded,
        points=None if points is None else [np.asarray(points, np.float32)],
        labels=None if labels is None else [np.asarray(labels, np.int64)],
        boxes=None if box is None else np.asarray([box], np.float32),
        multimask_output=multimask,
    )
    scores, masks = found.scores[0], found.masks()[0]
    return [
        {
            "score": float(scores[k]),
            "mask": encode_rle(masks[k]),
            "box": [float(v) for v in mask_box(masks[k])],
            "area": int(masks[k].sum()),
        }
        for k in np.argsort(-scores)
    ]


async def expire_for_ever(sessions: Sessions[Any]) -> None:
    """Looks for expired sessions every few seconds, so that abandoned ones free their memory though nobody asks."""
    while True:
        await asyncio.sleep(min(EXPIRY_CHECKS_S, sessions.expires_s / 4))
        if sessions.expire():
            gc.collect()
            give_back_memory()
