"""The bare loop: one process that reads, decodes, preprocesses and runs the model, and does nothing else.

Run as a process of its own (`python -m jobs.bench.bare images|videos DIR ...`), so that it has the machine as `vfm` has it.
It uses the same decoder and the same model callable; only the plumbing differs. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from vfm_ops.embed import Embedder, describe_embedder, load_embedder
from vfm_ops.media.decode.choose import open_decoder
from vfm_ops.media.frame import DecodeSettings, image_frame
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import probe_video
from vfm_ops.media.sampling import sample_fps
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.scheduling import use_batch_scheduling

T = TypeVar("T")


def load_default(runtime: str, threads: int) -> Embedder:
    """The default model, on the fastest runtime (`auto`) or in float32 (`torch`), on so many threads."""
    if runtime != "torch":
        return load_embedder(DEFAULT_EMBEDDER, threads=threads)
    import torch

    torch.set_num_threads(threads)
    return load_embedder(DEFAULT_EMBEDDER, runtime="torch", precision="exact", threads=threads)


def load_view() -> View:
    """What the default model sees."""
    return describe_embedder(DEFAULT_EMBEDDER).view


def image_batches(paths: list[Path], view: View, threads: int, batch: int) -> Iterator[np.ndarray]:
    """Decoded and resized batches, uint8 (B, H, W, 3), in order, from `threads` threads."""
    settings = DecodeSettings({"v": view}, jpeg=False)

    def one(group: list[Path]) -> np.ndarray:
        return np.stack([image_frame(MediaSource(str(p)), settings).views["v"] for p in group])

    return _in_order(one, [paths[i : i + batch] for i in range(0, len(paths), batch)], threads)


def video_batches(paths: list[Path], view: View, fps: float, threads: int) -> Iterator[np.ndarray]:
    """Frames at `fps` of each video, one batch a video, planned as our own decoder plans, from `threads` threads."""
    limits = Limits()

    def one(path: Path) -> np.ndarray:
        source = MediaSource(str(path))
        probe = probe_video(source, limits)
        plan = plan_decode(probe, sample_fps(probe.pts_s, fps))
        return np.stack([view.apply(rgb) for _, rgb in open_decoder(source, probe, plan, limits).frames()])

    return _in_order(one, paths, threads)


def _in_order(one: Callable[[T], np.ndarray], items: list[T], threads: int) -> Iterator[np.ndarray]:
    """Results of `one`, in the order of the items, a few ahead of the reader."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for item in items:
            waiting.append(pool.submit(one, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def main(argv: list[str]) -> None:
    """argv: images|videos FOLDER MODEL THREADS BATCH."""
    kind, folder, model, threads, batch = argv[0], Path(argv[1]), argv[2], int(argv[3]), int(argv[4])
    paths = sorted(p for p in folder.iterdir() if p.is_file())
    use_batch_scheduling()  # the floor is the best that is known
    embedder = load_embedder(model)
    if kind == "images":
        batches = image_batches(paths, embedder.view, threads, batch)
    else:
        batches = video_batches(paths, embedder.view, 1.0, threads)
    done, times = [], []
    for vectors in embedder.embed_image_stream(batches):
        done.append(len(vectors))
        times.append(time.perf_counter())
    # Steady: what comes after the first tenth, so that neither start nor warm-up counts.
    first = len(done) // 10
    rate = sum(done[first + 1 :]) / (times[-1] - times[first])
    print(json.dumps({"rate": rate, "items": sum(done), "threads": threads, "batch": batch}))


if __name__ == "__main__":
    main(sys.argv[1:])
