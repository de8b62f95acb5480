"""Ray Train around the worker's loop: how many workers on which devices, what survives a death, and what a failure says."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.pretraining.output import Output
from pipelines.pretraining.prepare import Prepared
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.registry import objective_class, objective_config

Progress = Callable[[dict[str, Any]], None]
Loop = Callable[[dict[str, Any]], Any]


def launch(
    ready: Prepared, lineage: dict[str, Any], progress: Progress | None = None, loop: Loop | None = None
) -> dict[str, Any]:
    """Runs Ray Train to the end. Returns what rank 0's worker returned. loop: what a worker runs in place of `train_worker`."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from pipelines.cluster import connect
    from pipelines.pretraining.feed import Views
    from pipelines.pretraining.worker import WorkerJob, train_worker

    # Ray Train takes note of one checkpoint a look: at its own 2 s, a run that writes them faster waits for it at the end,
    # and loses to a death what lies in the queue.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    connect()
    plan, run = ready.plan, ready.plan.run
    scaling, device, feed = _scale(ready)
    config = objective_config(plan.objective, **ready.model)
    view_plan = objective_class(plan.objective).view_plan(config)
    views = Views(ready.corpus.train, view_plan, plan.train_config.seed, ready.tokenizer)
    job = WorkerJob(
        plan.objective, ready.model, plan.train_config, run, len(ready.corpus.train), ready.corpus.classes, ray.put(views),
        ray.put(ready.corpus.held), ready.out, feed, device, lineage,
    )  # fmt: skip
    trainer = TorchTrainer(
        loop or train_worker,
        train_loop_config={"job": job},
        scaling_config=scaling,
        run_config=RunConfig(
            name="train",
            storage_path=ready.out,
            checkpoint_config=CheckpointConfig(num_to_keep=run.keep),
            failure_config=FailureConfig(max_failures=run.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _Watch(ready.out, progress), _own_interrupt():
        try:
            return trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _cause(error, ready) from error


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Gives Ctrl-C back to who had it. Ray Train's handler outlives its run, and holds the controller: an actor of 900 MB
    would stay, and the next Ctrl-C would go to it instead of stopping the caller.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # neither Ray Train nor we may set a handler here
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that Python did not set, which it can't set again
            signal.signal(signal.SIGINT, before)


def _cause(error: BaseException, ready: Prepared) -> VfmError:
    """The worker's own error where it is one of ours, else one sentence of it."""
    found: BaseException | None = error
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", None) or getattr(failure, "_base_exc", None) or failure
        found = inner
        if isinstance(inner, VfmError):
            return inner
    lines = [line for line in str(found).strip().splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else type(found).__name__
    return VfmError(
        f"training failed: {reason}; checkpoints are in {ready.out}/train, and the same command goes on from the last one"
    )


def _scale(ready: Prepared) -> tuple[Any, str, str]:
    """(ScalingConfig, device, feed) from the cluster and the settings."""
    import ray
    from ray.train import ScalingConfig

    run, config = ready.plan.run, ready.plan.train_config
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    if run.device == "cuda" and not gpus:
        raise UsageError("device cuda is asked for, but this cluster has no GPU: use device=auto or cpu")
    on_gpu = run.device != "cpu" and gpus > 0
    workers: Any = run.workers
    if workers is None:
        fitting = (
            n for n in range(max(1, gpus if on_gpu else 1), 0, -1) if not config.batch_size % (n * config.accumulate)
        )
        workers = next(fitting, 1)
    most = workers[1] if isinstance(workers, tuple) else workers
    least = workers[0] if isinstance(workers, tuple) else workers
    feed = ("ray" if on_gpu else "threads") if run.feed == "auto" else run.feed
    # Ray Data's tasks need CPUs that no worker holds.
    spare = cpus - least if feed == "ray" else cpus
    each = run.cpus_per_worker or (1 if feed == "ray" else max(1, spare // most))
    if least * each > cpus or (on_gpu and least > gpus):
        raise UsageError(
            f"{least} workers with {each} CPUs each"
            + (" and a GPU" if on_gpu else "")
            + f" do not fit a cluster of {cpus} "
            f"CPUs and {gpus} GPUs: lower workers or cpus_per_worker"
        )
    if feed == "ray" and least * each >= cpus:
        raise UsageError(f"feed ray needs CPUs beside the {least} workers; of {cpus} none is left: use feed=threads")
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=on_gpu,
        resources_per_worker={"CPU": each, **({"GPU": 1} if on_gpu else {})},
        elastic_resize_monitor_interval_s=run.resize_every_s,
    )
    return scaling, "cuda" if on_gpu else "cpu", feed


class _Watch:
    """Passes OUT/progress.json on while the run is under way."""

    def __init__(self, out: str, progress: Progress | None) -> None:
        self._output, self._progress = Output(out), progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="pretrain-progress")

    def __enter__(self) -> _Watch:
        if self._progress is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            data = self._output.get("progress.json")
            if data and self._progress is not None:
                self._progress(json.loads(data))
