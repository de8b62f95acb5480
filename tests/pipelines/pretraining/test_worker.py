"""The worker's loop without a cluster: killed and resumed at any step, stopped when it collapses."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.pretraining.feed import Views
from pipelines.pretraining.items import Corpus, MemoryItems
from pipelines.pretraining.prepare import prepare_corpus
from pipelines.pretraining.settings import Plan
from pipelines.pretraining.worker import Worker, WorkerJob
from tests.pipelines.pretraining.tiny import tiny_plan, traced
from tests.vfm_ops.pretrain.tiny import samples
from vfm_ops.pretrain.registry import objective_class, objective_config


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A function (corpus, plan, out, kept) -> Worker in this process. kept: checkpoints, as Ray Train would keep them."""
    sessions: list[list[Any]] = [[]]

    def report(metrics: dict[str, Any], checkpoint: Any, **how: Any) -> None:
        if checkpoint is not None:
            sessions[-1].append(checkpoint)

    monkeypatch.setattr("ray.train.report", report)
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: sessions[-1][-1] if sessions[-1] else None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other on steps this small

    def make(corpus: Corpus, plan: Plan, out: Path, kept: list[Any]) -> Worker:
        sessions.append(kept)
        ready = prepare_corpus(corpus, plan, str(out), {})
        config = objective_config(plan.objective, **ready.model)
        view_plan = objective_class(plan.objective).view_plan(config)
        views = Views(corpus.train, view_plan, plan.train_config.seed, ready.tokenizer)
        job = WorkerJob(
            plan.objective, ready.model, plan.train_config, plan.run, len(corpus.train), corpus.classes, None, None,
            ready.out, "threads", "cpu", {},
        )  # fmt: skip
        return Worker(job, views, None)

    yield make
    torch.set_num_threads(threads)


@pytest.mark.parametrize("objective", ["moco", "dino", "supervised"])
def test_killed_at_ten_random_steps_a_run_reads_and_learns_what_an_unbroken_one_does(
    worker, corpus, tmp_path, monkeypatch, objective
):
    """A queue and its pointer; a teacher and its centre; mixup's random numbers. A kill costs the steps since a checkpoint."""
    plan = tiny_plan(objective, "epochs=10", "checkpoint_every=3", "evaluations=0")
    unbroken = worker(corpus, plan, tmp_path / "unbroken", [])
    unbroken.run()
    step, kept = Worker._step, []
    kills = sorted(np.random.default_rng().choice(np.arange(1, 30), 10, replace=False).tolist())
    said = f"killed at {kills}"

    def mortal(self: Worker, batch: Any, ids: list[str]) -> dict[str, float]:
        if kills and self.stepper.step_index == kills[0]:
            kills.pop(0)
            raise Killed
        return step(self, batch, ids)

    monkeypatch.setattr(Worker, "_step", mortal)
    status = None
    while status is None:
        broken = worker(corpus, plan, tmp_path / "broken", kept)
        with contextlib.suppress(Killed):
            status = broken.run()["status"]
    assert (status, kills) == ("done", []), said
    want, got = ([row["loss"] for row in run.history.steps] for run in (unbroken, broken))
    assert len(got) == 30, said
    assert got == pytest.approx(want, rel=1e-6), said
    assert traced(tmp_path / "broken") == traced(tmp_path / "unbroken"), said


@pytest.mark.parametrize("objective", ["dino", "dinov2"])
def test_a_collapsing_run_is_named_within_an_epoch(worker, tmp_path, objective):
    """A hundred times the learning rate, no centring: stopped with a sentence, and a checkpoint to look at."""
    corpus = Corpus(MemoryItems(samples(160)), None, ("red", "green", "blue"), {}, "memory", 0)
    settings = ["centring=false", "freeze_last_layer_epochs=0", "on_collapse=stop"]
    if objective == "dinov2":
        settings.append("target=centring")
    healthy = worker(corpus, tiny_plan(objective, "on_collapse=stop"), tmp_path / "healthy", [])
    assert healthy.run()["status"] == "done"
    plan = tiny_plan(objective, *settings, "base_lr=0.1", "warmup_epochs=0")
    collapsing = worker(corpus, plan, tmp_path / "out", [])
    ended = collapsing.run()
    assert ended["status"] == "collapsed"
    assert ended["step"] <= 20, "one epoch"
    assert re.search(r"features collapsed|all targets", ended["message"]), ended["message"]
