"""`vfm bench serve`: the server as a user starts it, loaded by clients in this process. Rates and times over the bare model;
search with its recall; what a killed worker and a redeploy cost; what hostile requests and abandoned sessions leave behind."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa

from jobs.bench.media import read_frames, real_clips, write_jpegs
from jobs.bench.serve_hostile import hostile_requests
from jobs.bench.serve_load import Load, ask, embed_requests, post, request, run_load
from jobs.serve.client import Client
from pipelines.lake import Lake, embedding_field, with_nulls
from pipelines.lake.maintenance import maintain
from vfm_ops.errors import VfmError
from vfm_ops.media.encode import write_video
from vfm_ops.models.shipped import DEFAULT_EMBEDDER

CLIENTS = 32
DIM = 256
SESSION_S = 30  # of the sessions that are abandoned: how long until they expire
READY_WITHIN_S = 180


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows: what, ours, floor, ratio, bar, note. The clients and the server share this machine's processors."""
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        root = Path(folder)
        write_jpegs(root / "images", 64)
        images = [path.read_bytes() for path in sorted((root / "images").iterdir())]
        lake, vectors = synthetic_lake(root / "lake", 20_000 if quick else 200_000)
        small, _ = synthetic_lake(root / "small", 500)
        rows = _speed(root, lake, vectors, images, quick)
        rows += _robustness(root, small, images, quick)
        rows += _redeploy(small, images, 15.0 if quick else 60.0)
    return rows


# -- a server ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server, and its processes."""

    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Its replicas of a deployment."""
        return [p for p in self._all() if f"ServeReplica:vfm:{deployment}" in _name(p)]

    def memory_mb(self) -> float:
        """What the server, its replicas and their decoders alone hold (unique set size)."""
        own = [psutil.Process(self.process.pid), *self.replicas("")]
        decoders = [c for p in own[1:] for c in p.children(recursive=True)]
        decoders += [p for p in own[0].children() if "sandbox" in _name(p)]
        return sum(p.memory_full_info().uss for p in {*own, *decoders}) / 2**20

    def _all(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[Server]:
    """A server in a process of its own, from when it says that it serves until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not any(line.startswith("serving ") for line in process.stdout):
            raise VfmError(f"{' '.join(command)} ended before it served")
        yield Server(port, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- speed -------------------------------------------------------------------------------------------------------------


def _speed(root: Path, lake: Lake, vectors: np.ndarray, images: list[bytes], quick: bool) -> list[dict[str, Any]]:
    light, heavy = DEFAULT_EMBEDDER, vit_b32(root / "vit-b32")
    floors = {spec: bare(spec, images, 1 if quick else 4) for spec in (light, heavy)}
    seconds = 5.0 if quick else 20.0
    models = ("--embed", light, "--embed", heavy, "--segment", sam2_tiny(root / "sam2-tiny"))
    with serving("jobs.serve", "--lake", lake.root, *models) as server:
        rows = [_overhead(server, light, images, floors[light])]
        for spec, name, per_request in (
            (heavy, "CLIP ViT-B/32", 1),
            (light, "EfficientNet-Lite0", 1),
            (light, "EfficientNet-Lite0", 16),
        ):
            rows.append(_loaded(server, spec, name, images, per_request, floors[spec], seconds))
        rows += _searching(server, vectors, 100 if quick else 500)
        rows.append(_clicks(server, images, 3 if quick else 10))
    return rows


def bare(spec: str, images: list[bytes], rounds: int) -> dict[str, Any]:
    """The model in this process: its best rate over batch sizes (images/s), ms of one image, and the images' vectors."""
    from vfm_ops.embed import load_embedder
    from vfm_ops.media.images import decode_image
    from vfm_ops.media.limits import Limits

    embedder = load_embedder(spec)

    def view_of(data: bytes) -> np.ndarray:
        return embedder.view.apply(decode_image(data, Limits(), "image"))

    views = np.stack([view_of(data) for data in images])
    vectors = embedder.embed_images(views)
    best = 0.0
    for batch in (8, 16, 32, 64):
        started, done = time.perf_counter(), 0
        for _ in range(rounds):
            for start in range(0, len(views), batch):
                done += len(embedder.embed_images(views[start : start + batch]))
        best = max(best, done / (time.perf_counter() - started))
    one = [_ms(partial(embedder.embed_images, views[i : i + 1])) for i in range(len(views))]
    return {"rate": best, "one_ms": statistics.median(one), "vectors": vectors}


def _overhead(server: Server, spec: str, images: list[bytes], floor: dict[str, Any]) -> dict[str, Any]:
    requests = embed_requests(images, spec, 1, server.port)
    ask(server.port, requests[:8])
    single = statistics.median(a.seconds * 1e3 for a in ask(server.port, requests))
    return {
        "what": "embed, one client, one image: median ms over the model's own",
        "ours": single - floor["one_ms"],
        "floor": floor["one_ms"],
        "bar": "at most 8",
        "note": "JPEG decoding included",
    }


def _loaded(
    server: Server, spec: str, name: str, images: list[bytes], per_request: int, floor: dict[str, Any], seconds: float
) -> dict[str, Any]:
    requests = embed_requests(images, spec, per_request, server.port)
    error = float(np.abs(_vectors(ask(server.port, requests[:4])[0].body) - floor["vectors"][:per_request]).max())
    load = run_load(server.port, requests, CLIENTS, seconds)
    rate = per_request * load.rate
    return {
        "what": f"embed, {CLIENTS} clients, {per_request} image(s) a request, {name}: images/s",
        "ours": rate,
        "floor": floor["rate"],
        "ratio": rate / floor["rate"],
        "bar": "at least 0.80",
        "note": f"floor: the model alone, best batch, no decoding; vectors differ by {error:.1g}, {len(load.failed)} failed",
    }


def _vectors(body: bytes) -> np.ndarray:
    answer = json.loads(body)
    return np.frombuffer(base64.b64decode(answer["embeddings"]), "<f4").reshape(answer["count"], answer["dim"])


def _searching(server: Server, vectors: np.ndarray, count: int) -> list[dict[str, Any]]:
    picked = np.random.default_rng(1).choice(len(vectors), count, replace=False).tolist()
    stored = vectors.astype(np.float16).astype(np.float32)
    requests = [post("search", {"frame_id": f"{i:032x}:0", "limit": 10}, server.port) for i in picked]
    ask(server.port, requests[:20])
    answers = ask(server.port, requests)
    recalls = []
    for i, answer in zip(picked, answers):
        scores = stored @ stored[i]
        scores[i] = -2
        least = np.partition(scores, -10)[-10]
        recalls.append(np.mean([hit["score"] >= least - 1e-3 for hit in json.loads(answer.body)["hits"]]))
    return [
        {
            "what": f"search, {len(vectors):,} x {DIM}, top 10: p50 ms end to end",
            "ours": statistics.median(a.seconds * 1e3 for a in answers),
            "bar": "at most 15",
        },
        {"what": "the same: recall@10 against an exact scan", "ours": float(np.mean(recalls)), "bar": "at least 0.95"},
    ]


def _clicks(server: Server, images: list[bytes], rounds: int) -> dict[str, Any]:
    """The first click costs the opening of its session, which encodes; the second only itself."""
    firsts, seconds = [], []
    with Client(server.url, timeout_s=300) as client:
        with client.segment(images[0]) as warm:
            warm.click([[10, 10]], [1])
        for data in images[:rounds]:
            started = time.perf_counter()
            with client.segment(data) as session:
                session.click([[100, 80]], [1])
                firsts.append(time.perf_counter() - started)
                seconds.append(_ms(partial(session.click, [[200, 150]], [1])) / 1e3)
    first, second = statistics.median(firsts) * 1e3, statistics.median(seconds) * 1e3
    return {
        "what": "segment, SAM 2 tiny at 1024 px: second click over the first, ms",
        "ours": second,
        "floor": first,
        "ratio": second / first,
        "bar": "at most 0.15",
    }


# -- robustness --------------------------------------------------------------------------------------------------------


def _robustness(root: Path, lake: Lake, images: list[bytes], quick: bool) -> list[dict[str, Any]]:
    spec, sam2 = DEFAULT_EMBEDDER, sam2_small(root / "sam2-small")
    limits = ("--set", "limits.sessions=1000", "--set", f"limits.session_s={SESSION_S}")
    models = ("--embed", spec, "--segment", sam2, "--track", sam2)
    with serving("jobs.serve", "--lake", lake.root, *models, *limits) as server:
        rows = [_killed(server, spec, images, 15.0 if quick else 60.0)]
        rows.append(_hostile(server, spec, images, 200 if quick else 2000))
        rows += _abandoned(server, images, 100 if quick else 1000)
    return rows


def _killed(server: Server, spec: str, images: list[bytes], seconds: float) -> dict[str, Any]:
    """SIGKILL to the replica that embeds, a third into the load."""
    requests = embed_requests(images, spec, 1, server.port)
    expected = [a.body for a in ask(server.port, requests)]

    async def kill(started: float) -> None:
        await asyncio.sleep(seconds / 3)
        server.replicas("Embedding")[0].kill()

    load = run_load(server.port, requests, CLIENTS, seconds, kill)
    return _failures("a worker killed", load, expected, f"at most {CLIENTS}, each a clean 5xx")


def _redeploy(lake: Lake, images: list[bytes], seconds: float) -> list[dict[str, Any]]:
    """All deployments replaced by a new version, a third into the load; behind Ray's proxy, as on a cluster."""
    spec = DEFAULT_EMBEDDER
    with serving("jobs.bench.serve_cluster", "--lake", lake.root, "--embed", spec) as server:
        requests = embed_requests(images, spec, 1, server.port)
        expected = [a.body for a in ask(server.port, requests)]

        async def replace(started: float) -> None:
            await asyncio.sleep(seconds / 3)
            await asyncio.to_thread(_say, server.process, "redeploy")

        return [
            _failures("a rolling redeploy", run_load(server.port, requests, CLIENTS, seconds, replace), expected, "0")
        ]


def _say(process: subprocess.Popen[str], line: str) -> None:
    """Gives a command to a server, and waits until it says that it is done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    if not any(said.startswith("done") for said in process.stdout):
        raise VfmError(f"the server ended on {line!r}")


def _failures(what: str, load: Load, expected: list[bytes], bar: str) -> dict[str, Any]:
    unclean = [a for a in load.failed if a.status < 500 or not a.is_problem]
    return {
        "what": f"{what}, {CLIENTS} clients for {load.seconds:.0f} s: failed requests",
        "ours": len(load.failed),
        "bar": bar,
        "note": f"{len(load.ok):,} answered, {load.wrong(expected)} wrong, {len(unclean)} failed uncleanly, "
        f"longest wait {load.longest_s():.1f} s",
    }


def _hostile(server: Server, spec: str, images: list[bytes], count: int) -> dict[str, Any]:
    """After a tenth of them as a warm-up, so that what caches and decoders take once is not counted."""
    requests = list(hostile_requests(count, images[0], server.port))
    ask(server.port, requests[: count // 10])
    replicas, before = [p.pid for p in server.replicas("")], server.memory_mb()
    answers = ask(server.port, requests)
    fine = ask(server.port, embed_requests(images[:1], spec, 1, server.port))[0]
    time.sleep(10)
    failed = [a for a in answers if a.status >= 500 and a.status != 501]
    hung = sum(a.status == 0 for a in answers)
    alive = [p.pid for p in server.replicas("")] == replicas
    return {
        "what": f"{count:,} hostile requests: answered 5xx",
        "ours": len(failed),
        "bar": "0, no crash, memory back",
        "note": f"{sum(400 <= a.status < 500 for a in answers):,} refused, {hung} hung up on, "
        f"{'no' if alive and fine.status == 200 else 'A'} crash, memory {server.memory_mb() - before:+.0f} MB of {before:.0f}",
    }


def _abandoned(server: Server, images: list[bytes], count: int) -> list[dict[str, Any]]:
    """Half of the sessions segment, half track an uploaded video; nobody closes them."""
    clip = _clip()
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    upload = request(
        "POST", "track/uploads", head + clip + b"\r\n--b--\r\n", server.port, "multipart/form-data; boundary=b"
    )
    texts = [base64.b64encode(data).decode() for data in images]
    opens = [post("segment/sessions", {"image": t}, server.port) for t in texts]
    both = [r for i in range(count // 2) for r in (opens[i % len(opens)], upload)]
    ask(server.port, both[: max(20, count // 10)])
    time.sleep(SESSION_S * 1.5)
    before = server.memory_mb()
    answers = ask(server.port, both)
    peak = server.memory_mb()
    time.sleep(SESSION_S * 1.25)
    after = server.memory_mb()
    return [
        {
            "what": f"{count:,} sessions opened and abandoned: MB more, {SESSION_S * 1.25:.0f} s after the last",
            "ours": after - before,
            "floor": before,
            "bar": "memory back",
            "note": f"{sum(a.status == 201 for a in answers):,} opened, {peak - before:+.0f} MB while open",
        }
    ]


# -- what they need ----------------------------------------------------------------------------------------------------


def vit_b32(folder: Path) -> str:
    """Spec of a CLIP of the size of ViT-B/32 with random weights: its speed does not depend on them."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from vfm_ops.pocket.text import make_tokenizer

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return f"clip:{folder}"


def sam2_tiny(folder: Path) -> str:
    """Spec of a SAM 2 of the size of hiera-tiny, 1024 px, with random weights."""
    import torch
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    torch.manual_seed(0)
    Sam2Model(Sam2Config()).save_pretrained(folder)
    Sam2ImageProcessor().save_pretrained(folder)
    return f"sam2:{folder}"


def sam2_small(folder: Path) -> str:
    """Spec of a SAM 2 for images and videos of 128 px with random weights."""
    from transformers import Sam2ImageProcessor

    from vfm_ops.pocket.sam2 import make_model

    make_model().save_pretrained(folder)
    Sam2ImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return f"sam2:{folder}"


def _clip() -> bytes:
    """Two seconds of real video."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, list(read_frames(real_clips()[0], 50)), 25)
        return path.read_bytes()


def synthetic_lake(root: Path, rows: int) -> tuple[Lake, np.ndarray]:
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
        lake.commit("frames", lake.write_fragments("frames", with_nulls(schema, columns)))
    maintain(lake)
    return lake, vectors


def _ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
