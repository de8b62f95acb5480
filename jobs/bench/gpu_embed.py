"""`vfm bench gpu`, embedding: the product's embedder beside other ways to run the same weights, and what feeds it.

Weights are random, architectures and sizes are real: speed does not depend on what they say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from jobs.bench.gpu_decode import Corpus, checked
from jobs.bench.gpu_measure import Row, Session, Task, Work, count_batches, forever, graphed, rate
from vfm_ops.embed import Embedder, load_embedder
from vfm_ops.embed.geometry import geometry_of
from vfm_ops.embed.towers import ImageTower
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.models.checkpoint import read_folder
from vfm_ops.models.device import cpu_count

OURS = "ours, runtime auto"
DEFAULT_BATCH, LARGE = 32, 128  # the product's own, and one that fills any card
SIDE = 224
Run = Callable[[Tensor], Tensor]  # uint8 (B, H, W, 3) on the device -> (B, D) there


@dataclass
class Model:
    """A timm architecture with random weights, in a folder that the product loads. name: as rows have it."""

    name: str
    architecture: str
    arguments: dict[str, Any]
    session: Session

    @property
    def what(self) -> str:
        """What its rows are called."""
        return f"embed, {self.name}: images/s"

    @cached_property
    def folder(self) -> Path:
        """Settings and weights, as timm's hub has them."""
        import timm

        folder = self.session.folder / self.architecture
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = timm.create_model(self.architecture, num_classes=0, **self.arguments)
        settings = {"architecture": self.architecture, "num_classes": 0, "model_args": self.arguments}
        (folder / "config.json").write_text(json.dumps(settings))
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        return folder

    def tower(self) -> ImageTower:
        """The product's own module on the device, in float32; anew each time, since ways change it in place."""
        checkpoint = read_folder(self.folder)
        tower = ImageTower(checkpoint, geometry_of(checkpoint, "fast"), False)
        return tower.eval().requires_grad_(False).to(self.session.device)

    def embedder(self, batch: int) -> Embedder:
        """The product's, on the runtime that it takes by itself."""
        return load_embedder(f"timm:{self.folder}", device=str(self.session.device), runtime="auto", batch_size=batch)

    @cached_property
    def pixels(self) -> Tensor:
        """A batch of eight on the device."""
        return torch.from_numpy(dead_leaves(8, SIDE, SIDE)).to(self.session.device)

    @cached_property
    def reference(self) -> Tensor:
        """Its vectors in float32, (8, D)."""
        return fp32(self.tower())(self.pixels).float()

    def batch(self, size: int, device: str | torch.device) -> Tensor:
        """uint8 (size, S, S, 3)."""
        return self.pixels.repeat(-(-size // 8), 1, 1, 1)[:size].to(device)

    @cached_property
    def work(self) -> Callable[[int], Work]:
        """What a batch computes in bfloat16."""
        run = bf16_weights(self.tower())
        return count_batches(lambda batch: run(self.pixels[:batch]))


def tasks(session: Session) -> Iterator[Task]:
    """Rows of each model: the product at some batch sizes, then the ways that could be had, on batches that lie on the card."""
    large = 8 if session.quick else LARGE
    for number, model in enumerate(models(session)):
        for batch in (large,) if session.quick else (DEFAULT_BATCH, large):
            yield {"what": model.what, "way": OURS, "batch": batch}, partial(product, model, batch)
        if number == 0:
            yield {"what": f"JPEGs to vectors, {model.name}: images/s", "way": OURS}, partial(decode_and_embed, model)
        for name, way in (WAYS | (CARD_WAYS if session.is_card else {})).items():
            every = (32, 64, large, 256) if way is bf16_weights and not session.quick else (large,)
            for batch in every:
                yield {"what": model.what, "way": name, "batch": batch}, partial(resident, model, way, batch)
        for name, feed in COPIES.items() if session.is_card else ():
            yield {"what": model.what, "way": name, "batch": large}, partial(from_host, model, feed, large)


def models(session: Session) -> list[Model]:
    """Of each size."""
    if session.quick:
        return [Model(session.named("ViT-B/16"), "vit_tiny_patch16_224", {"depth": 1}, session)]
    return [
        Model("ViT-B/16", "vit_base_patch16_224", {}, session),
        Model("ViT-L/14", "vit_large_patch14_clip_224", {}, session),
    ]


def product(model: Model, batch: int) -> Row:
    """Batches that lie on the host, to vectors on the host, as an op calls it."""
    embedder = model.embedder(batch)
    frames = model.batch(batch, "cpu").numpy()
    batches = 2 if model.session.quick else 16

    def run() -> None:
        for _ in embedder.embed_image_stream(frames for _ in range(batches)):
            pass

    timed = model.session.time(run, warm=1)
    note = f"took {embedder.runtime}, {embedder.precision}; from host to host"
    return model.session.row(batch * batches, timed, model.work(batch).times(batches), note)


def resident(model: Model, way: Callable[[ImageTower], Run], batch: int) -> Row:
    """A batch that lies on the device already, and vectors that stay there: what the product could reach."""
    run, x = way(model.tower()), model.batch(batch, model.session.device)
    cosine = F.cosine_similarity(run(x)[: len(model.reference)].float(), model.reference[:batch]).min().item()
    timed = model.session.time(lambda: run(x), warm=3)
    return model.session.row(batch, timed, model.work(batch), f"cosine to float32 {cosine:.4f}")


def fp32(tower: ImageTower) -> Run:
    """As it was loaded."""
    return tower


def bf16_autocast(tower: ImageTower) -> Run:
    """The product's own way on a card: weights are rounded again in each call."""

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return tower(x)

    return run


def bf16_weights(tower: ImageTower, layout: torch.memory_format = torch.contiguous_format) -> Run:
    """Weights that were rounded once; norms and sums run in bfloat16, too."""
    model = tower.model.to(torch.bfloat16, memory_format=layout)

    def run(x: Tensor) -> Tensor:
        return tower.features(model, tower.normalise(x).permute(0, 3, 1, 2).to(torch.bfloat16))[0]

    return run


def channels_last(tower: ImageTower) -> Run:
    """The same, with convolutions' weights channels-last."""
    return bf16_weights(tower, torch.channels_last)


def compiled(tower: ImageTower) -> Run:
    """Each block fused by Inductor, which compiles one for all: the whole network at once takes minutes."""
    model: Any = tower.model
    for block in model.blocks:
        block.compile(dynamic=False)
    return bf16_weights(tower)


def cuda_graph(tower: ImageTower) -> Run:
    """Eager kernels as one CUDA graph."""
    return graphed(bf16_weights(tower))


def compiled_graph(tower: ImageTower) -> Run:
    """Fused blocks as one CUDA graph."""
    return graphed(compiled(tower))


WAYS: dict[str, Callable[[ImageTower], Run]] = {
    "eager, float32": fp32,
    "eager, bf16 autocast": bf16_autocast,
    "eager, bf16 weights": bf16_weights,
    "eager, bf16 weights, channels-last": channels_last,
}
CARD_WAYS: dict[str, Callable[[ImageTower], Run]] = {
    "CUDA graph, bf16 weights": cuda_graph,
    "blocks by torch.compile, bf16 weights": compiled,
    "CUDA graph of blocks by torch.compile, bf16 weights": compiled_graph,
}


def from_host(model: Model, feed: Callable[[Tensor], Callable[[], Tensor]], batch: int) -> Row:
    """Eager with bf16 weights, on batches that come from the host."""
    run, next_batch = bf16_weights(model.tower()), feed(model.batch(batch, "cpu"))
    return model.session.row(batch, model.session.time(lambda: run(next_batch())), model.work(batch))


def pageable(host: Tensor) -> Callable[[], Tensor]:
    """A copy that the host waits for."""
    return lambda: host.to("cuda")


def pinned(host: Tensor) -> Callable[[], Tensor]:
    """A copy in line with the kernels, that the host does not wait for."""
    fixed = host.pin_memory()
    return lambda: fixed.to("cuda", non_blocking=True)


def overlapped(host: Tensor) -> Callable[[], Tensor]:
    """A copy while earlier batches are computed."""
    fixed, stream = host.pin_memory(), torch.cuda.Stream()

    def upload() -> Tensor:
        computing = torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            moved = fixed.to("cuda", non_blocking=True)
        computing.wait_stream(stream)
        moved.record_stream(computing)
        return moved

    return upload


COPIES = {
    "from pageable memory, bf16 weights": pageable,
    "from pinned memory, bf16 weights": pinned,
    "from pinned memory on a stream of its own, bf16 weights": overlapped,
}


def decode_and_embed(model: Model) -> Row:
    """JPEG files to vectors by the product's decoder and embedder: as many decoding processes as there are cores."""
    session, size = model.session, 8 if model.session.quick else DEFAULT_BATCH
    embedder, processes = model.embedder(size), 1 if session.quick else cpu_count()
    sources = forever([MediaSource(str(path)) for path in Corpus(session.folder, session.quick).jpegs])
    settings = DecodeSettings({"v": embedder.view}, jpeg=False)

    def batches(frames: Iterator[Any]) -> Iterator[np.ndarray]:
        while True:
            yield np.stack([next(frames).views["v"] for _ in range(size)])

    with Sandbox(settings, processes) as sandbox:
        frames: Any = checked(sandbox.images(sources))
        vectors: Any = embedder.embed_image_stream(batches(frames))
        with closing(frames), closing(vectors):
            found = size * rate(vectors, 2 if session.quick else 8, 0.2 if session.quick else 6.0)
    return {"ours": found, "note": f"{processes} decoding processes"}
