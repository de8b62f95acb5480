"""`vfm bench serve`: rate and overhead of the served application over the bare model, and search end to end with its recall."""

from __future__ import annotations

import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from jobs.bench.media import write_jpegs
from jobs.serve.client import Client
from pipelines.lake import Lake, embedding_field
from pipelines.lake.maintenance import maintain
from pipelines.recipe import default_model

CLIENTS = 32
DIM = 256


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows: what, ours, floor, ratio, bar. The server runs on this machine, beside the clients that load it."""
    from jobs.serve import start, stop

    spec = default_model()
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        root = Path(folder)
        write_jpegs(root / "images", 64)
        images = [path.read_bytes() for path in sorted((root / "images").iterdir())]
        lake, vectors = synthetic_lake(root / "lake", 20_000 if quick else 200_000, spec)
        floor = bare(spec, images, 2 if quick else 8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start({"lake": lake.root, "embed": {"extra": [spec]}}, "127.0.0.1", port)
        try:
            url = f"http://127.0.0.1:{port}"
            rows = [*_embedding(url, spec, images, floor, quick), *_searching(url, lake, vectors, quick)]
        finally:
            stop()
    return rows


# -- embed -------------------------------------------------------------------------------------------------------------


def bare(spec: str, images: list[bytes], rounds: int) -> dict[str, float]:
    """The model in this process, without decoding: its best rate over batch sizes (images/s), and ms of one image."""
    from vfm_ops.embed import load_embedder
    from vfm_ops.media.images import decode_image
    from vfm_ops.media.limits import Limits

    embedder = load_embedder(spec)

    def view_of(data: bytes) -> np.ndarray:
        return embedder.view.apply(decode_image(data, Limits(), "image"))

    views = np.stack([view_of(data) for data in images])
    best = 0.0
    for batch in (8, 16, 32, 64):
        started, done = time.perf_counter(), 0
        for _ in range(rounds):
            for start in range(0, len(views), batch):
                done += len(embedder.embed_images(views[start : start + batch]))
        best = max(best, done / (time.perf_counter() - started))
    one = [_ms(partial(embedder.embed_images, views[i : i + 1])) for i in range(len(views))]
    decoded = [_ms(partial(view_of, data)) for data in images]
    return {"rate": best, "one_ms": statistics.median(one), "decode_ms": statistics.median(decoded)}


def _embedding(url: str, spec: str, images: list[bytes], floor: dict[str, float], quick: bool) -> list[dict[str, Any]]:
    with Client(url) as client:
        client.embed(images=images[:1], model=spec)
        single = [_ms(partial(client.embed, images=[data], model=spec)) for data in images]
    overhead = statistics.median(single) - floor["one_ms"] - floor["decode_ms"]
    rows = [
        {
            "what": "embed, one client: median overhead over model and decoding, ms",
            "ours": overhead,
            "floor": floor["one_ms"] + floor["decode_ms"],
            "bar": "at most 8",
        }
    ]
    for per_request in (1, 16):
        rate = loaded_rate(url, spec, images, per_request, 4.0 if quick else 20.0)
        rows.append(
            {
                "what": f"embed, {CLIENTS} clients, {per_request} image(s) a request: images/s",
                "ours": rate,
                "floor": floor["rate"],
                "ratio": rate / floor["rate"],
                "bar": "at least 0.80",
                "note": "floor: the model alone, best batch, no decoding",
            }
        )
    return rows


def loaded_rate(url: str, spec: str, images: list[bytes], per_request: int, seconds: float) -> float:
    """Images per second of CLIENTS threads that each ask again as soon as they are answered."""
    done, lock, until = [0], threading.Lock(), time.perf_counter() + seconds

    def ask(number: int) -> None:
        batch = [images[(number + i) % len(images)] for i in range(per_request)]
        with Client(url) as client:
            while time.perf_counter() < until:
                count = len(client.embed(images=batch, model=spec))
                with lock:
                    done[0] += count

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    return done[0] / (time.perf_counter() - started)


# -- search ------------------------------------------------------------------------------------------------------------


def synthetic_lake(root: Path, rows: int, spec: str) -> tuple[Lake, np.ndarray]:
    """A lake of clustered unit vectors, indexed as `vfm index` does. Returns it and the vectors, float32 (rows, DIM)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((500, DIM)).astype(np.float32)
    vectors = centres[rng.integers(0, len(centres), rows)] + 0.7 * rng.standard_normal((rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lake = Lake.create(root)
    field = embedding_field("synthetic:vectors", DIM, {"digest": ""})
    lake.ensure("frames", [field])
    jpeg = cv2.imencode(".jpg", np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
    schema = lake.schema("frames")
    for start in range(0, rows, 20_000):
        part = vectors[start : start + 20_000].astype(np.float16)
        count = len(part)
        flat = pa.array(part.reshape(-1))
        columns: dict[str, Any] = {
            "frame_id": [f"{i:032x}:0" for i in range(start, start + count)],
            "asset_id": [f"{i:032x}" for i in range(start, start + count)],
            "run_key": ["bench"] * count,
            "frame_index": pa.array([0] * count, pa.int64()),
            "jpeg": pa.array([jpeg] * count, pa.large_binary()),
            field.name: pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
        table = pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in schema], schema)
        lake.commit("frames", lake.write_fragments("frames", table))
    maintain(lake)
    return lake, vectors


def _searching(url: str, lake: Lake, vectors: np.ndarray, quick: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    picked = rng.choice(len(vectors), 50 if quick else 300, replace=False)
    stored = vectors.astype(np.float16).astype(np.float32)
    times, recalls = [], []
    with Client(url) as client:
        client.search(frame_id=f"{picked[0]:032x}:0")
        for i in picked.tolist():
            started = time.perf_counter()
            page = client.search(frame_id=f"{i:032x}:0", limit=10)
            times.append((time.perf_counter() - started) * 1e3)
            scores = stored @ stored[i]
            scores[i] = -2
            least = np.partition(scores, -10)[-10]
            recalls.append(np.mean([(h.score or 0) >= least - 1e-3 for h in page.hits]))
    return [
        {
            "what": f"search, {len(vectors):,} x {DIM}, top 10: p50 ms end to end",
            "ours": statistics.median(times),
            "bar": "at most 15",
        },
        {"what": "the same: recall@10 against an exact scan", "ours": float(np.mean(recalls)), "bar": "at least 0.95"},
    ]


def _ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
