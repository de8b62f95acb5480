"""`embed`, `classify`, `models`."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import Response

from jobs.serve.context import Context
from jobs.serve.problems import Problem
from jobs.serve.routes.schemas import ClassifyRequest, EmbedAnswer, EmbedRequest


def routes(context: Context) -> APIRouter:
    """Routes over images and texts."""
    api = APIRouter(tags=["embeddings"])

    @api.post("/embed", response_model=EmbedAnswer)
    async def embed(body: EmbedRequest) -> Response:
        """Unit vectors of images or of texts, in the space of one model: equal to what `vfm embed` stores."""
        return await _embed(context, body.images, body.texts, body.model, body.encoding)

    @api.post("/embed/files", response_model=EmbedAnswer)
    async def embed_files(
        files: Annotated[list[UploadFile], File()],
        model: Annotated[str | None, Form(max_length=500)] = None,
        encoding: Annotated[str, Form()] = "float",
    ) -> Response:
        """As `embed`, of files sent as multipart/form-data."""
        if encoding not in ("float", "base64"):
            raise Problem(422, "", "encoding is float or base64.")
        context.check_batch(len(files))
        return await _embed(context, [await f.read() for f in files], None, model, encoding)

    @api.post("/classify")
    async def classify(body: ClassifyRequest) -> list[list[dict[str, Any]]]:
        """Zero-shot classification: for each image its best labels, with probability (softmax) and cosine."""
        count = len(body.images or body.frame_ids or [])
        context.check_batch(count)
        column = await context.pick(body.model, text=True, stored=False)
        images = body.images or [await context.image_bytes(None, i) for i in body.frame_ids or []]
        prompts = [[t.replace("{}", label) for t in body.templates] for label in body.labels]
        cosines = await context.embedding(column).classify.remote(images, prompts)
        context.metrics.items.labels("classify").inc(count)
        return [_ranked(row, body) for row in np.asarray(cosines, np.float64)]

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """What answers here: embedding models (those of the lake's columns first), detectors, segmenter, tracker."""
        settings = context.settings
        return {
            "embed": [{"model": c.spec, "column": c.name or None} for c in context.choices()],
            "detect": list(context.detect),
            "segment": settings.segment.spec if settings.segment else None,
            "track": settings.track.spec if settings.track else None,
        }

    return api


async def _embed(
    context: Context, images: list[bytes] | None, texts: list[str] | None, model: str | None, encoding: str
) -> Response:
    count = len(images or texts or [])
    context.check_batch(count)
    column = await context.pick(model, text=texts is not None, stored=False)
    handle = context.embedding(column)
    if images is not None:
        vectors = await handle.embed_images.remote(images)
    else:
        vectors = await handle.embed_texts.remote(texts)
    context.metrics.items.labels("embed").inc(count)
    packed: Any = base64.b64encode(vectors.astype("<f4")).decode() if encoding == "base64" else vectors.tolist()
    answer = {"model": column.spec, "dim": vectors.shape[1], "count": len(vectors), "embeddings": packed}
    # Validating a thousand floats again would cost more than computing them.
    return Response(json.dumps(answer), media_type="application/json")


def _ranked(cosines: np.ndarray, body: ClassifyRequest) -> list[dict[str, Any]]:
    logits = cosines * body.scale
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    best = np.argsort(-cosines, kind="stable")[: body.top]
    return [
        {"label": body.labels[i], "probability": float(chances[i]), "cosine": float(cosines[i])} for i in best.tolist()
    ]
