"""Ray, started where it runs: a cluster when there is one, else a small local one that starts fast."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

from pipelines.recipe import Resources

OBJECT_STORE = 256 << 20  # encoded bytes cross process borders, and few of them
# Every process of Ray reports, every second, what only a dashboard would show; a local one has none.
UNWATCHED = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
MOST_CPUS = 8  # of one actor that decodes and embeds


def has_ray() -> bool:
    """Whether a cluster is there to be joined, or joined already. Imports nothing: Ray takes more than a second."""
    return bool(os.environ.get("RAY_ADDRESS")) or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def connect(object_store: int = OBJECT_STORE) -> None:
    """Joins the cluster of RAY_ADDRESS or of the job that we are; else starts a local Ray without dashboard."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", **quiet)
    else:
        for name, value in UNWATCHED.items():
            os.environ.setdefault(name, value)
        # Not "auto": a cluster that someone else started here is not ours to fill.
        ray.init("local", num_cpus=os.cpu_count(), object_store_memory=object_store, include_dashboard=False, **quiet)


@dataclass(frozen=True)
class Placement:
    """Where the stages of a run go, decided from the devices of the cluster and the recipe."""

    fused: bool
    actors: tuple[int, int]  # model actors, min and max
    cpus: int  # per model actor
    gpus: float
    decode_actors: tuple[int, int]

    @property
    def threads(self) -> int:
        """Decoder processes and model streams of one actor."""
        return self.cpus


def place(resources: Resources) -> Placement:
    """Fuses decode and model on CPUs, where a frame need not cross a process; on GPUs, feeds each from many CPU actors."""
    import ray

    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 1)), total.get("GPU", 0.0)
    on_gpu = resources.device == "cuda" or (resources.device == "auto" and gpus > 0)
    fused = not on_gpu if resources.fuse == "auto" else resources.fuse
    per_actor = min(cpus, resources.cpus_per_actor or (MOST_CPUS if fused else 1))
    share = resources.gpus_per_actor if on_gpu else 0.0
    most = max(1, int(gpus / share)) if on_gpu else max(1, cpus // per_actor)
    models = _span(resources.actors, most)
    spare = max(1, cpus - models[1] * per_actor)
    return Placement(fused, models, per_actor, share, _span(resources.decode_actors, spare))


def _span(pool: int | tuple[int, int] | None, most: int) -> tuple[int, int]:
    if pool is None:
        return (1, most)
    return (pool, pool) if isinstance(pool, int) else pool
