"""Every objective's small preset on Fashion-MNIST: what it learns, against random weights and raw pixels, and how fast. And
what the feed costs: steps fed from a lake over the same steps on batches that lie in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.pretraining.worker import Worker
from vfm_ops.pretrain.registry import build_objective
from vfm_ops.pretrain.step import Stepper

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
    from jobs.bench.pretrain_objectives import Benchmark
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
    return round(100 * value, 1) if key in _PERCENT else round(value, 3 if "share" in key else 1)


def feeding(quick: bool) -> dict[str, float]:
    """SimCLR on a ResNet-18 at 112 px from a lake of 640 x 360 JPEGs: the whole trainer, by Ray Train, over the bare steps.

    images_per_s is the trainer's, start-up excluded: reading, decoding, augmenting, logs and checkpoints included.
    feeding_share and feeding_cpu_share are 1 when all that beside the step costs no time, and no CPU time.
    """
    from pipelines.pretraining.launch import launch
    from pipelines.pretraining.prepare import prepare
    from pipelines.pretraining.settings import make_plan

    batch, turn, turns = (16, 2, 1) if quick else (64, 10, 4)
    settings = (
        "backbone=resnet18", "image_size=112", "jitter=0.5", "blur=0.0", f"batch_size={batch}", "epochs=100", "prefetch=2",
        f"checkpoint_every={turn}", f"until_step={turn * (turns + 1)}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        lake = _lake_of_jpegs(Path(folder), 64 if quick else 256)
        ready = prepare(lake, make_plan("simclr", overrides=settings), f"{folder}/out")
        cost = launch(ready, {}, loop=_alternate)
    images = turn * batch
    return {
        "images_per_s": images / cost["fed"][0],
        "images_per_cpu_s": images / cost["fed"][1],
        "feeding_share": cost["bare"][0] / cost["fed"][0],
        "feeding_cpu_share": cost["bare"][1] / cost["fed"][1],
    }


class Alternating(Worker):
    """The trainer, which after each turn of steps hands over to the same step on a batch that lies in memory.

    The two take turns in one process, so that another program's load hits both. fed, bare: [seconds, CPU seconds] of each
    turn; the trainer's first one warms up.
    """

    def __init__(self, job: Any, views: Any, held: Any) -> None:
        super().__init__(job, views, held)
        objective = build_objective(job.objective, **job.model)
        self.bare_stepper = Stepper(objective, job.config, job.samples, job.device)
        self.fed: list[np.ndarray] = []
        self.bare: list[np.ndarray] = []
        self._since: np.ndarray | None = None

    def _step(self, batch: dict[str, Any], ids: list[str]) -> dict[str, float]:
        logs = super()._step(batch, ids)
        turn = self.job.run.checkpoint_every
        if self.stepper.step_index % turn == 0:
            if self._since is not None:
                self.fed.append(_clock() - self._since)
            self.bare_stepper.step(batch)  # the feed fills its queue meanwhile
            started = _clock()
            for _ in range(turn):
                self.bare_stepper.step(batch)
            self._since = _clock()
            self.bare.append(self._since - started)
        return logs


def _clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _alternate(settings: dict[str, Any]) -> dict[str, list[float]]:
    """What Ray Train's worker runs. Returns medians over turns."""
    import ray

    worker = Alternating(settings["job"], ray.get(settings["job"].views), ray.get(settings["job"].held))
    worker.run()
    return {"fed": np.median(worker.fed, axis=0).tolist(), "bare": np.median(worker.bare, axis=0).tolist()}


def _lake_of_jpegs(folder: Path, count: int) -> Any:
    """Frames of real footage as rows of `frames`."""
    from jobs.bench.media import write_jpegs
    from pipelines.lake import SCHEMAS, Lake, with_nulls

    lake = Lake.create(folder / "lake")
    paths = write_jpegs(folder / "jpegs", count)
    assets = [f"{i:032x}" for i in range(count)]
    columns = {
        "frame_id": [f"{asset}:0" for asset in assets],
        "asset_id": assets,
        "run_key": ["bench.1"] * count,
        "jpeg": [p.read_bytes() for p in paths],
    }
    lake.append("assets", with_nulls(SCHEMAS["assets"], {"asset_id": assets, "uri": [str(p) for p in paths]}))
    lake.append("frames", with_nulls(SCHEMAS["frames"], columns))
    return lake
