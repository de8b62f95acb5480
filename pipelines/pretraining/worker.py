"""What every Ray Train worker runs: the loop from the newest checkpoint to the last step, the same on any number of ranks."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.pretraining.checkpoint import (
    allow_mixed_parameters,
    average_batch_statistics,
    full_state,
    load_full_state,
    read_checkpoint,
    shard,
    write_checkpoint,
)
from pipelines.pretraining.feed import Slice, Views, ray_feed, thread_feed
from pipelines.pretraining.history import History
from pipelines.pretraining.judge import Judge
from pipelines.pretraining.output import Output
from pipelines.pretraining.pictures import draw
from pipelines.pretraining.settings import RunSettings
from vfm_ops.errors import UsageError
from vfm_ops.pretrain.export import embed_family, export_timm, export_transformers
from vfm_ops.pretrain.losses.collective import all_reduce_detached, rank, world_size
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.registry import build_objective
from vfm_ops.pretrain.step import Stepper, TrainingDiverged
from vfm_ops.pretrain.train_config import TrainConfig


@dataclass(frozen=True)
class WorkerJob:
    """All that a worker needs to know; `views` and `held` are references to objects in Ray's store."""

    objective: str
    model: dict[str, Any]
    config: TrainConfig
    run: RunSettings
    samples: int
    classes: tuple[str, ...]
    views: Any
    held: Any
    out: str
    feed: str  # 'threads' or 'ray'
    device: str
    lineage: dict[str, Any]


def train_worker(settings: dict[str, Any]) -> dict[str, Any] | None:
    """The train function: returns, on rank 0, {status, message, step, metrics}. settings: {'job': WorkerJob}."""
    import ray

    return Worker(settings["job"], ray.get(settings["job"].views), ray.get(settings["job"].held)).run()


class Worker:
    """One rank: builds, resumes, steps, logs, checkpoints; rank 0 also evaluates and exports."""

    def __init__(self, job: WorkerJob, views: Views, held: Any) -> None:
        self.job, self.views = job, views
        torch.manual_seed(job.config.seed)  # the same initial weights on every rank
        objective = build_objective(job.objective, **job.model).to(job.device)
        self.sharded = job.run.fsdp and world_size() > 1
        if self.sharded:
            shard(objective, job.device)
        # A collapse is seen by one rank's features; the ranks agree on it in `_collapsed`.
        config = job.config.model_copy(update={"on_collapse": "warn"})
        self.stepper = Stepper(objective, config, job.samples, job.device, average_gradients=not self.sharded)
        if self.sharded:
            allow_mixed_parameters(self.stepper.optimizer)
        self.history = History()
        self.judge = Judge(views.items, held, job.classes, views.make_tokenize(), job.run.eval_items)
        self.output = Output(job.out) if rank() == 0 else None
        self.resumed_at = self._resume()

    def _resume(self) -> int:
        from ray import train

        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            state, self.history = read_checkpoint(Path(folder))
        load_full_state(self.stepper, state)
        return self.stepper.step_index

    def run(self) -> dict[str, Any] | None:
        """Trains to the end (or until_step), then evaluates and exports."""
        job, stepper = self.job, self.stepper
        last = min(job.run.until_step or stepper.total_steps, stepper.total_steps)
        every = job.run.checkpoint_every or max(
            1, min(job.config.steps_per_epoch(job.samples), stepper.total_steps // 20)
        )
        evaluate_at = _milestones(stepper.total_steps, job.run.evaluations)
        saved = stepper.step_index
        for batch, ids in self._feed(last):
            try:
                logs = self._step(batch, ids)
            except TrainingDiverged as error:  # on every rank: the loss is a mean over them
                return self._end("diverged", str(error))
            if stepper.step_index in evaluate_at:
                self._evaluate()
            if stepper.step_index % every == 0 or stepper.step_index == last:
                self._save(logs)
                saved = stepper.step_index
            if self._collapsed(logs):
                return self._end("collapsed", self._collapse_message())
        if saved != stepper.step_index:
            self._save(self.history.steps[-1])
        if last < stepper.total_steps:
            return self._end("stopped", f"stopped after step {last} of {stepper.total_steps} as until_step says")
        return self._finish()

    def _feed(self, last: int) -> Iterator[Any]:
        job = self.job
        part = Slice(rank(), world_size(), job.config.batch_size, job.samples, job.config.seed)
        first = self.stepper.step_index
        if job.feed == "ray":
            return ray_feed(job.views, part, first, last, job.run.prefetch)
        return thread_feed(self.views, part, first, last, job.run.feed_threads, job.run.prefetch)

    def _step(self, batch: dict[str, Any], ids: list[str]) -> dict[str, float]:
        """One step; random numbers of the step (mixup, drop path) follow from seed, step and rank, as after a resume."""
        step = self.stepper.step_index
        torch.manual_seed(_draw(self.job.config.seed, step, rank()))
        tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
        if self.job.device != "cpu":
            tensors = {key: value.pin_memory() for key, value in tensors.items()}
        logs = self.stepper.step(tensors)
        average_batch_statistics(self.stepper.objective)
        if self.job.run.trace_ids:
            Output(self.job.out).trace(rank(), world_size(), step, ids)
        if self.output is not None:
            self.history.add(logs)
            self.output.step(logs, self.stepper.total_steps, self.job.config.batch_size)
        return logs

    def _collapsed(self, logs: dict[str, float]) -> bool:
        """Whether any rank's alarm went off and the run is to stop then. A collective at monitored steps."""
        if self.job.config.on_collapse != "stop" or int(logs["step"]) % self.job.config.monitor_every:
            return False
        flag = torch.tensor(logs.get("collapse", 0.0), device=self.job.device)
        return bool(all_reduce_detached(flag, "max"))

    def _collapse_message(self) -> str:
        found = self.stepper.collapse_message or "another worker's features collapsed"
        step = self.stepper.step_index - 1
        return f"{self.job.objective} at step {step}: {found}; lower base_lr or check its centring"

    def _plain_objective(self) -> Objective | None:
        """On rank 0, the objective with whole weights; a collective when they are sharded."""
        if not self.sharded:
            return self.stepper.objective if rank() == 0 else None
        state = full_state(self.stepper)
        if rank():
            return None
        objective = build_objective(self.job.objective, **self.job.model)
        objective.load_state_dict(state["model"])
        return objective.to(self.job.device)

    def _evaluate(self) -> None:
        objective = self._plain_objective()
        if objective is not None and self.output is not None:
            metrics = self.judge.quick(objective) | {"step": float(self.stepper.step_index)}
            self.history.evaluations.append(metrics)
            self.output.evaluation(metrics)

    def _save(self, logs: dict[str, float]) -> None:
        from ray import train
        from ray.train import Checkpoint, CheckpointUploadMode

        state = full_state(self.stepper)
        checkpoint = None
        if rank() == 0:
            checkpoint = Checkpoint.from_directory(str(write_checkpoint(state, self.history)))
        train.report(
            {"step": self.stepper.step_index, "loss": logs["loss"]},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step-{self.stepper.step_index:08d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def _finish(self) -> dict[str, Any] | None:
        objective = self._plain_objective()
        if objective is None:
            return None
        metrics = self.judge.full(objective)
        models = self._export(objective, {**self.job.lineage, "metrics": metrics})
        return self._end("done", "", metrics, draw(objective, self.views), models)

    def _export(self, objective: Objective, lineage: dict[str, Any]) -> list[str]:
        """OUT/model, and OUT/transformers where transformers has a model of that form. Returns the specs that `vfm embed`
        takes."""
        if self.output is None:
            return []
        with tempfile.TemporaryDirectory(prefix="vfm-model-") as folder:
            self.output.put_folder(export_timm(objective, f"{folder}/timm", lineage), "model")
            try:
                other = export_transformers(objective, f"{folder}/other", self.views.read_tokenizer(), lineage)
            except UsageError:  # a ResNet, or towers of another shape than the family's
                return [f"timm:{self.job.out}/model"]
            self.output.put_folder(other, "transformers")
            family = embed_family(objective, other)
        return [f"timm:{self.job.out}/model", *([f"{family}:{self.job.out}/transformers"] if family else [])]

    def _end(
        self,
        status: str,
        message: str,
        metrics: dict[str, float] | None = None,
        pictures: dict[str, bytes] | None = None,
        models: list[str] | None = None,
    ) -> dict[str, Any] | None:
        if self.output is None:
            return None
        self.output.close()
        collapse = self.stepper.collapse_message
        return {
            "status": status, "message": message, "step": self.stepper.step_index, "metrics": metrics or {},
            "resumed_at": self.resumed_at, "warning": collapse, "history": self.history.__dict__,
            "pictures": pictures or {}, "models": models or [],
        }  # fmt: skip


def _milestones(total: int, count: int) -> set[int]:
    """Steps after which the run is evaluated, the last one left to the final evaluation."""
    return {round(total * (i + 1) / (count + 1)) for i in range(count)} - {0, total}


def _draw(seed: int, step: int, rank_: int) -> int:
    digest = hashlib.blake2b(json.dumps([seed, step, rank_]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
