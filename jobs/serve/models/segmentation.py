"""Segmentation replicas: a session encodes its image once, every click is answered from that encoding."""

from __future__ import annotations

import asyncio
import base64
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.serve.models.loading import LoadedModel
from jobs.serve.sessions import HoldsSessions, Sessions
from jobs.serve.settings import ModelChoice, RequestLimits
from jobs.serve.uploads import Decoder
from vfm_ops.allocator import give_back_memory
from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    from vfm_ops.segment.segmenter import EncodedImage, Segmenter

EXPIRY_CHECKS_S = 5.0


@dataclass(frozen=True)
class _Opened:
    """image: as it came; crops are cut from its pixels, which would take more room than the encoding. frame_id: of a frame of
    the lake."""

    encoded: EncodedImage
    image: bytes
    frame_id: str | None


class Segmentation(HoldsSessions):
    """The deployment. A session's requests all reach the replica that holds its encoding (hashed by the session's id)."""

    def __init__(self, choice: dict[str, Any], limits: dict[str, Any]) -> None:
        from vfm_ops.segment.segmenter import load_segmenter

        chosen, limit = ModelChoice(**choice), RequestLimits(**limits)
        self._decoder = Decoder(limit.media())
        self._segmenter = LoadedModel(lambda: load_segmenter(chosen.spec, device=chosen.device), chosen.is_eager)
        self._sessions: Sessions[_Opened] = Sessions(limit.sessions, limit.session_s)
        self._one_at_a_time = asyncio.Lock()
        self._expiry = asyncio.get_running_loop().create_task(expire_for_ever(self._sessions))

    async def open(self, session: str, image: bytes, frame_id: str | None = None) -> dict[str, Any]:
        """Encodes an image, which may be of a frame, under a session's id. Returns its width, height and lifetime. MediaError;
        Problem 429."""
        segmenter = await self._segmenter.get()
        self._sessions.reserve()
        (rgb,) = await asyncio.to_thread(self._decoder.pixels, [image])
        async with self._one_at_a_time:
            encoded = await asyncio.to_thread(segmenter.encode, rgb)
        self._sessions.add(session, _Opened(encoded, image, frame_id))
        return {"width": rgb.shape[1], "height": rgb.shape[0], "expires_s": self._sessions.expires_s}

    async def segment(self, session: str, prompt: dict[str, Any]) -> list[dict[str, Any]]:
        """Candidates, best first: mask (COCO RLE), box, score. prompt: a `SegmentClick`. UsageError; Problem 404."""
        segmenter, opened = await self._segmenter.get(), self._sessions.get(session)
        async with self._one_at_a_time:
            return await asyncio.to_thread(_candidates, segmenter, opened.encoded, prompt)

    async def everything(self, session: str, grid: dict[str, Any]) -> list[dict[str, Any]]:
        """Masks of all that a grid of points finds, best first. grid: a `SegmentEverything`. Problem 404."""
        segmenter, opened = await self._segmenter.get(), self._sessions.get(session)
        rgb = None
        if grid["crop_n_layers"]:
            (rgb,) = await asyncio.to_thread(self._decoder.pixels, [opened.image])
        async with self._one_at_a_time:
            return await asyncio.to_thread(_everything, segmenter, opened.encoded, rgb, grid)

    async def frame(self, session: str) -> str | None:
        """The frame of the lake that a session is on; None where an image was sent. Problem 404."""
        return self._sessions.get(session).frame_id

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()


def _candidates(segmenter: Segmenter, encoded: EncodedImage, prompt: dict[str, Any]) -> list[dict[str, Any]]:
    from vfm_ops.segment.prompt_file import segment_entry
    from vfm_ops.track.masks import checked_rle, encode_rle, mask_box
    from vfm_ops.track.prompt_file import Shown

    shown = Shown(**{name: prompt[name] for name in ("points", "labels", "box")})
    coarse = _float32(prompt["mask_input"], segmenter)
    if prompt["mask"] is not None:
        if coarse is not None:
            raise UsageError("give mask or mask_input, one of the two")
        coarse = checked_rle(prompt["mask"], encoded.size)
    options = {name: prompt[name] for name in ("multimask_output", "max_hole_area", "max_sprinkle_area")}
    found = segment_entry(segmenter, encoded, shown, mask_input=coarse, **options)
    scores, logits = found.scores[0], found.logits_on_image(0).cpu().numpy()
    candidates = []
    for k in np.argsort(-scores):
        mask = logits[k] > 0
        box = [float(v) for v in mask_box(mask)]
        made = {"score": float(scores[k]), "mask": encode_rle(mask), "box": box, "area": int(mask.sum())}
        if prompt["return_logits"]:
            made["logits"] = _base64(logits[k])
            made["low_res_logits"] = _base64(found.logits_NKhw[0, k].cpu().numpy())
        candidates.append(made)
    return candidates


def _everything(
    segmenter: Segmenter, encoded: EncodedImage, rgb: np.ndarray | None, grid: dict[str, Any]
) -> list[dict[str, Any]]:
    from vfm_ops.segment.automatic import GridSettings, generate_masks

    return [
        {"score": m.score, "mask": m.rle, "box": m.box.tolist(), "area": m.area, "stability": m.stability}
        for m in generate_masks(segmenter, encoded if rgb is None else rgb, GridSettings(**grid), encoded)
    ]


def _float32(data: bytes | None, segmenter: Segmenter) -> np.ndarray | None:
    """Mask logits (h, w) as they were sent; UsageError for another number of them."""
    if data is None:
        return None
    side = segmenter.geometry.image_size // 4
    if len(data) != 4 * side * side:
        raise UsageError(
            f"mask_input has {len(data)} bytes: give float32 of {side} x {side}, an answer's low_res_logits"
        )
    return np.frombuffer(data, "<f4").reshape(side, side)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


async def expire_for_ever(sessions: Sessions[Any]) -> None:
    """Looks for expired sessions every few seconds, so that abandoned ones free their memory though nobody asks."""
    while True:
        await asyncio.sleep(min(EXPIRY_CHECKS_S, sessions.expires_s / 4))
        if sessions.expire():
            gc.collect()
            give_back_memory()
