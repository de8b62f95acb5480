"""Every objective's small preset on Fashion-MNIST: what it learns, against random weights and raw pixels, and how fast. And
what the feed costs: steps fed from a lake over the same steps on batches that lie in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUICK_MINUTES = 0.2
MINUTES = 10.0


def measure(quick: bool) -> list[dict[str, Any]]:
    """One row per objective: accuracies in percent (kNN, kNN of 1,000 labels, linear probe, zero-shot), steps, images/s; then
    the feed's row.

    quick: seconds an objective instead of minutes: the figures then mean nothing. UsageError without Debian's
    dataset-fashion-mnist.
    """
    from vfm_ops.pretrain.benchmark import bench_pretrain
    from vfm_ops.pretrain.registry import OBJECTIVES

    rows = bench_pretrain(
        OBJECTIVES, minutes=QUICK_MINUTES if quick else MINUTES, probe_samples=2000 if quick else 20000
    )
    return [*map(_row, rows), feeding(quick)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    accuracies = ("knn", "knn_1000", "pixel_knn_1000", "probe", "random_probe", "pixel_probe", "zero_shot")
    shown = {key: None if row[key] is None else round(100 * row[key], 1) for key in accuracies}
    return {
        "objective": row["objective"], **shown, "effective_rank": round(row["effective_rank"], 1),
        "steps": f"{row['steps']}/{row['of_steps']}", "seconds": round(row["seconds"]),
        "images_per_s": round(row["images_per_s"]),
    }  # fmt: skip


def feeding(quick: bool) -> dict[str, Any]:
    """SimCLR on a ResNet-18 at 112 px from a lake of 640 x 360 JPEGs: images/s of the whole loop over the bare steps'.

    The two take turns in one process, so that another program's load hits both. feeding_share is 1 when waiting for batches,
    decoding and augmenting beside the step cost nothing.
    """
    import torch

    from pipelines.pretraining.feed import Slice, Views, thread_feed
    from pipelines.pretraining.items import LakeItems
    from vfm_ops.pretrain.registry import build_objective
    from vfm_ops.pretrain.step import Stepper
    from vfm_ops.pretrain.train_config import train_config

    steps, batch = (6, 16) if quick else (20, 64)
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        lake = _lake_of_jpegs(Path(folder), 64 if quick else 256)
        frames = lake.table("frames")
        rows = frames.scanner(columns=["frame_id"], with_row_id=True).to_table()
        items = LakeItems(lake.root, frames.version, rows["_rowid"].to_numpy())
        torch.manual_seed(0)
        objective = build_objective("simclr", backbone="resnet18", image_size=112, jitter=0.5, blur=0.0)
        config = train_config("simclr", batch_size=batch, epochs=100)
        stepper = Stepper(objective, config, len(items))
        views = Views(items, objective.view_plan(objective.config), 0)
        part = Slice(0, 1, batch, len(items), 0)
        fed, bare = 0.0, 0.0
        for turn in range(2):
            feed = thread_feed(views, part, 0, steps + 1, prefetch=2)
            ready, _ = next(feed)
            if not turn:
                stepper.step(ready)  # the first one allocates
            fed += _seconds(stepper, (made for made, _ in feed))
            bare += _seconds(stepper, (ready for _ in range(steps)))
    images = 2 * steps * batch
    return {"objective": "feeding", "images_per_s": round(images / fed, 1), "feeding_share": round(bare / fed, 3)}


def _seconds(stepper: Any, batches: Iterator[dict[str, Any]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        stepper.step(batch)
    return time.perf_counter() - started


def _lake_of_jpegs(folder: Path, count: int) -> Any:
    """Frames of real footage as rows of `frames`."""
    import pyarrow as pa

    from jobs.bench.media import write_jpegs
    from pipelines.lake import SCHEMAS, Lake

    lake = Lake.create(folder / "lake")
    paths = write_jpegs(folder / "jpegs", count)
    columns = {
        "frame_id": [f"{i:032x}:0" for i in range(count)],
        "asset_id": [f"{i:032x}" for i in range(count)],
        "run_key": ["bench.1"] * count,
        "jpeg": [p.read_bytes() for p in paths],
    }
    schema = SCHEMAS["frames"]
    lake.append("frames", pa.table([pa.array(columns.get(f.name, [None] * count), f.type) for f in schema], schema))
    return lake
