"""The HTTP application on loopback without Ray: the real gateway, guard, listener and decoder, over stand-ins for replicas.

What a replica would compute is made up (a vector from the pixels' mean); what hostile input meets on its way there is real.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from jobs.serve.gateway import Gateway
from jobs.serve.listener import Listener
from jobs.serve.problems import Problem
from jobs.serve.settings import RequestLimits, ServeSettings
from jobs.serve.uploads import Decoder
from pipelines.lake import Lake, embedding_field


class _Method:
    """`handle.method.remote(...)`, as an awaitable."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def remote(self, *args: Any, **options: Any) -> Any:
        import asyncio

        return await asyncio.to_thread(self._call, *args, **options)


class StandIn:
    """Answers for the replicas of every task; decodes uploads in the sandbox that they would use."""

    def __init__(self, dim: int, limits: RequestLimits) -> None:
        self._dim, self._decoder = dim, Decoder(limits.media())

    def options(self, **options: Any) -> StandIn:
        """The same; a Ray handle would choose a replica."""
        return self

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self, f"do_{name}"))

    def close(self) -> None:
        """Stops the decoder."""
        self._decoder.close()

    def do_describe(self) -> dict[str, Any]:
        return {"has_text": True}

    def do_embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self._unit(text.encode("utf-8", "surrogatepass")) for text in texts])

    def do_embed_images(self, images: list[bytes], boxes: Any = None) -> np.ndarray:
        return np.stack(
            [self._unit(rgb.mean((0, 1)).astype(np.uint8).tobytes()) for rgb in self._decoder.pixels(images)]
        )

    def do_classify(self, images: list[bytes], prompts: list[list[str]]) -> np.ndarray:
        return self.do_embed_images(images) @ self.do_embed_texts([own[0] for own in prompts]).T

    def do_detect(self, images: list[bytes], prompts: list[str], threshold: float | None, limit: int) -> list[Any]:
        return [
            {"width": rgb.shape[1], "height": rgb.shape[0], "detections": []} for rgb in self._decoder.pixels(images)
        ]

    def do_open(self, session: str, source: Any, *_: Any) -> dict[str, Any]:
        if isinstance(source, bytes):
            (rgb,) = self._decoder.pixels([source])
            return {"width": rgb.shape[1], "height": rgb.shape[0]}
        raise Problem(422, "", "This stand-in tracks nothing.")

    def do_segment(self, *args: Any) -> list[Any]:
        raise Problem(404, "no such session", "There is no such session.")

    do_prompt = do_close = do_everything = do_frame = do_objects = do_segment
    do_remove_object = do_clear_all_prompts_in_frame = do_reset_state = do_segment

    def _unit(self, seed: bytes) -> np.ndarray:
        rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big"))
        vector = rng.normal(size=self._dim).astype(np.float32)
        return vector / np.linalg.norm(vector)


async def _nothing() -> None:
    pass


@contextmanager
def listening(lake: Lake, port: int, dim: int = 8, **limits: Any) -> Iterator[str]:
    """The application over a lake; yields its URL."""
    settings = ServeSettings(lake=lake.root, limits=RequestLimits(**limits))
    replicas = StandIn(dim, settings.limits)
    make = lambda: Gateway(settings.model_dump(), replicas, {"stand:in": replicas}, replicas, replicas)  # noqa: E731
    listener = Listener(make, _nothing, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listener.close()
        replicas.close()


def tiny_lake(root: Any, assets: int, frames: int, dim: int = 8, groups: int = 4) -> Lake:
    """A lake of `assets` images (every third a video) of `frames` frames each, settled, with pictures and with vectors in as
    many groups; frame i of the whole has vector group i % groups."""
    lake, rng = Lake.create(root), np.random.default_rng(0)
    facts = {"digest": "d", "runtime": "auto", "precision": "auto", "preprocess": "fast"}
    field = embedding_field("timm:made-up", dim, facts)
    for table in ("assets", "frames", "shots", "detections", "tracks", "ledger"):
        lake.ensure(table, [field] if table == "frames" else [])
    ids = [f"a{i:06d}" for i in range(assets)]
    kinds = ["video" if i % 3 == 0 else "image" for i in range(assets)]
    _commit(lake, "assets", {"asset_id": ids, "uri": [f"/media/{i}.jpg" for i in ids], "media_type": kinds})
    _commit(lake, "ledger", {"asset_id": ids, "run_key": ["r.1"] * assets, "frames": [frames] * assets})
    count = assets * frames
    group = np.arange(count) % groups
    vectors = rng.normal(size=(groups, dim))[group] + 0.1 * rng.normal(size=(count, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pictures = [cv2.imencode(".jpg", np.full((9, 12, 3), 60 * (g % 4), np.uint8))[1].tobytes() for g in range(groups)]
    columns = {
        "frame_id": [f"{i}:{n}" for i in ids for n in range(frames)],
        "asset_id": [i for i in ids for _ in range(frames)],
        "run_key": ["r.1"] * count,
        "frame_index": list(range(frames)) * assets,
        "pts_s": [n / 25 for n in range(frames)] * assets,
        "width": [12] * count,
        "height": [9] * count,
        "jpeg": [pictures[g] for g in group],
        field.name: list(vectors.astype(np.float16)),
    }
    _commit(lake, "frames", columns)
    return lake


def _commit(lake: Lake, table: str, columns: dict[str, list]) -> None:
    schema = lake.schema(table)
    count = len(next(iter(columns.values())))
    made = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema]
    lake.commit(table, lake.write_fragments(table, pa.table(made, schema)))
