"""Every objective's small preset on Fashion-MNIST: what it learns, against random weights and raw pixels, and how fast. And
what the feed costs: steps fed from a lake over the same steps on batches that lie in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

QUICK_STEPS = 20
PIXELS, FEEDING = "raw pixels", "feeding"


def measure(quick: bool, kept: Path | None = None) -> list[dict[str, Any]]:
    """One row per objective, one of raw pixels, and the feed's. Accuracies are percentages: knn (k 20), knn_1000 (k 5, of
    1,000 labels), probe, random_probe, accuracy (own classifier, or class names).

    quick: seconds an objective instead of minutes: the figures then mean nothing. kept: JSON file that gets each row as soon
    as it is there; rows that it already holds, measured on this machine, are not measured again. UsageError without
    Debian's dataset-fashion-mnist.
    """
    from jobs.bench import Kept
    from vfm_ops.pretrain.benchmark import Benchmark
    from vfm_ops.pretrain.registry import OBJECTIVES

    data = Benchmark.load(bank=2000 if quick else 20_000)
    file = Kept(kept, "pretrain", quick)
    rows = {row["objective"]: row for row in file.rows}
    until = QUICK_STEPS if quick else None
    makers: dict[str, Callable[[], dict[str, Any]]] = {PIXELS: data.pixels}
    makers |= {name: partial(data.objective, name, until) for name in OBJECTIVES}
    makers[FEEDING] = partial(feeding, quick)
    for name, make in makers.items():
        if name in rows:
            continue
        rows[name] = {"objective": name, **{key: _rounded(key, value) for key, value in make().items()}}
        file.write([*rows.values()])
    return [rows[name] for name in makers]


_PERCENT = ("knn", "knn_1000", "probe", "random_probe", "accuracy")


def _rounded(key: str, value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    return round(100 * value, 1) if key in _PERCENT else round(value, 3 if key == "feeding_share" else 1)


def feeding(quick: bool) -> dict[str, float]:
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
    return {"images_per_s": images / fed, "feeding_share": bare / fed}


def _seconds(stepper: Any, batches: Iterator[dict[str, Any]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        stepper.step(batch)
    return time.perf_counter() - started


def _lake_of_jpegs(folder: Path, count: int) -> Any:
    """Frames of real footage as rows of `frames`."""
    from jobs.bench.media import write_jpegs
    from pipelines.lake import SCHEMAS, Lake, with_nulls

    lake = Lake.create(folder / "lake")
    paths = write_jpegs(folder / "jpegs", count)
    columns = {
        "frame_id": [f"{i:032x}:0" for i in range(count)],
        "asset_id": [f"{i:032x}" for i in range(count)],
        "run_key": ["bench.1"] * count,
        "jpeg": [p.read_bytes() for p in paths],
    }
    lake.append("frames", with_nulls(SCHEMAS["frames"], columns))
    return lake
