"""Embedding replicas: several models each, requests of many clients batched dynamically.

bytes ──batched, sandbox──▶ views ──batched, model──▶ each request's vectors
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from jobs.serve.batching import DynamicBatcher
from jobs.serve.models.loading import load_or_unavailable
from jobs.serve.settings import EmbedChoice, RequestLimits
from jobs.serve.uploads import Decoder, checked
from pipelines.search.columns import Column, load_same
from vfm_ops.errors import MediaError
from vfm_ops.models.device import cpu_count, resolve_device

MOST_REMEMBERED_TEXTS = 4096


def column_key(column: Column) -> str:
    """A column as text: what Serve routes by, to a replica that holds its model already."""
    return json.dumps(asdict(column), sort_keys=True)


def default_batch(device: str) -> int:
    """Images of one pass: what fills a card, or each processor's stream once, so that answers leave early and evenly."""
    return 64 if resolve_device(device) != "cpu" else 4 * min(cpu_count(), 16)


class EmbeddingModel:
    """One loaded model of a replica; its passes take whatever requests wait when the last one ends."""

    def __init__(self, column: Column, choice: EmbedChoice, decoder: Decoder) -> None:
        self.embedder = load_same(column, choice.device)
        view, batch = self.embedder.view, choice.batch or default_batch(choice.device)
        self._decode = DynamicBatcher[bytes, np.ndarray | MediaError](
            lambda images: decoder.views(images, view), batch, choice.decoders
        )
        self._pass = DynamicBatcher(self._run, batch, at_once=2)
        self._texts: dict[str, np.ndarray] = {}
        self._text_lock = asyncio.Lock()

    async def images(self, images: list[bytes]) -> np.ndarray:
        """float32 (n, D) of encoded images. Raises MediaError."""
        return await self.views(checked(await self._decode(images)))

    async def views(self, views: list[np.ndarray]) -> np.ndarray:
        """float32 (n, D) of the model's inputs."""
        return np.stack(await self._pass(views))

    def _run(self, views: list[np.ndarray]) -> list[np.ndarray]:
        ragged = self.embedder.view.fit == "naflex"
        return list(self.embedder.embed_images(views if ragged else np.stack(views)))

    async def texts(self, texts: list[str]) -> np.ndarray:
        """float32 (n, D); texts seen before come from memory. UsageError without a text tower."""
        new = [t for t in dict.fromkeys(texts) if t not in self._texts]
        if new:
            async with self._text_lock:
                made = await asyncio.to_thread(self.embedder.embed_texts, new)
            if len(self._texts) + len(new) > MOST_REMEMBERED_TEXTS:
                self._texts.clear()
            fresh = dict(zip(new, made))
            vectors = [fresh[t] if t in fresh else self._texts[t] for t in texts]
            self._texts.update(fresh)
            return np.stack(vectors)
        return np.stack([self._texts[t] for t in texts])


class Embedding:
    """The deployment. choice, limits: the server's settings."""

    def __init__(self, choice: dict[str, Any], limits: dict[str, Any]) -> None:
        self._choice = EmbedChoice(**choice)
        self._decoder = Decoder(RequestLimits(**limits).media(), self._choice.decoders)

        async def load(key: str) -> EmbeddingModel:
            column = Column(**json.loads(key))
            make = partial(EmbeddingModel, column, self._choice, self._decoder)
            return await asyncio.to_thread(load_or_unavailable, make)

        # Not a decorated method: how many models fit is a setting.
        self._model = serve.multiplexed(max_num_models_per_replica=self._choice.models_at_once)(load)

    async def _held(self) -> EmbeddingModel:
        return await self._model(serve.get_multiplexed_model_id())

    async def embed_images(self, images: list[bytes], boxes: list[tuple[float, ...]] | None = None) -> np.ndarray:
        """float32 (n, D) of encoded images, or of one box (xyxy, pixels) of each. Raises MediaError."""
        model = await self._held()
        if boxes is None:
            return await model.images(images)
        return await model.views(await asyncio.to_thread(self._decoder.crop_views, images, boxes, model.embedder.view))

    async def embed_texts(self, texts: list[str]) -> np.ndarray:
        """float32 (n, D). UsageError when the model has no text tower."""
        return await (await self._held()).texts(texts)

    async def classify(self, images: list[bytes], prompts: list[list[str]]) -> np.ndarray:
        """Cosines float32 (n, C) of images and classes; a class is the mean of its prompts' unit vectors (CLIP, sec. 3.1.4)."""
        model = await self._held()
        text = await model.texts([p for own in prompts for p in own])
        ends = np.cumsum([len(own) for own in prompts])[:-1]
        classes = np.stack([part.mean(0) for part in np.split(text, ends)])
        classes /= np.maximum(np.linalg.norm(classes, axis=1, keepdims=True), 1e-12)
        return await self.embed_images(images) @ classes.T

    async def describe(self) -> dict[str, Any]:
        """What a client is told of a model: spec, dim, has_text, runtime, precision."""
        e = (await self._held()).embedder
        return {"model": e.spec, "dim": e.dim, "has_text": e.has_text, "runtime": e.runtime, "precision": e.precision}

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()
