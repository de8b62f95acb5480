"""Whole runs on Ray: a lake becomes a model, and a run survives what may happen to it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines.pretraining import pretrain, run_prepared
from pipelines.pretraining.feed import Slice
from pipelines.pretraining.items import Corpus, MemoryItems
from pipelines.pretraining.prepare import prepare_corpus
from pipelines.process.backfill import embed_lake
from pipelines.process.recipe import Resources
from tests.pipelines.pretraining.tiny import losses, tiny_plan, traced
from tests.vfm_ops.pretrain.tiny import build, samples, tokenizer
from vfm_ops.embed import describe_embedder
from vfm_ops.pretrain.fit import fit
from vfm_ops.pretrain.step import TrainingDiverged


def test_a_lake_becomes_a_model_that_embeds_with_its_card_and_curves(ray_local, lake, tmp_path):
    out, interrupt = tmp_path / "out", signal.getsignal(signal.SIGINT)
    summary = pretrain(lake, tiny_plan("supervised", "holdout=0.2", "epochs=3"), str(out))
    assert summary.status == "done"
    assert signal.getsignal(signal.SIGINT) is interrupt, (
        "Ctrl-C is the caller's again, and no handler holds Ray's actors"
    )
    assert summary.step == summary.total_steps == round(3 * summary.samples / 8)
    assert summary.metrics["probe"] > 0.9, "colours are easy"
    assert {"knn", "effective_rank"} <= summary.metrics.keys()
    spec = f"timm:{out}/model"
    assert describe_embedder(spec).dim == 24
    assert embed_lake(lake, {"model": spec, "runtime": "torch", "precision": "exact"}, Resources(device="cpu")) == 48
    card = (out / "model" / "README.md").read_text()
    for fact in (
        "pretrained by supervised",
        f"all frames of {lake.root}",
        "table frames: version",
        "probe",
        '"batch_size": 8',
    ):
        assert fact in card, fact
    page = (out / "report.html").read_text()
    assert page.count("<polyline") >= 4
    assert "http" not in page.split("Lineage")[0], "nothing is loaded from elsewhere"
    assert list((out / "tensorboard").iterdir())
    assert pretrain(lake, tiny_plan("supervised", "holdout=0.2", "epochs=3"), str(out)).message.startswith(
        "this run was"
    )


def test_a_run_resumed_on_other_workers_equals_an_uninterrupted_one(ray_local, corpus, tmp_path):
    """Its second half runs on two workers with sharded weights: the same ids in the same order, the same losses. The
    tokenizer learns in the first four steps, the backbone in the last two."""
    share = "tokenizer_share=0.6"
    plan = tiny_plan("beit", share)
    whole = [row["loss"] for row in fit(build("beit", tokenizer_share=0.6), samples(), plan.train_config, tokenizer())]
    part = run_prepared(prepare_corpus(corpus, tiny_plan("beit", share, "until_step=3"), str(tmp_path), {}))
    assert (part.status, part.step, part.resumed_at) == ("stopped", 3, 0)
    assert losses(tmp_path, 3) == pytest.approx(whole[:3], rel=1e-6)
    sharded = tiny_plan("beit", share, "fsdp=true", workers="2")
    last = run_prepared(prepare_corpus(corpus, sharded, str(tmp_path), {}))
    assert (last.status, last.resumed_at) == ("done", 3)
    assert losses(tmp_path, 6) == pytest.approx(whole, rel=1e-4)
    expected = {s: [str(i) for _, i in Slice(0, 1, 8, 24, 0).places(s)] for s in range(6)}
    assert traced(tmp_path) == expected
    assert sorted(p.name for p in (tmp_path / "train").glob("step-*")) == ["step-00000005", "step-00000006"]


@dataclass(frozen=True)
class DyingItems(MemoryItems):
    """Kills the process that reads sample 3 for the second time: in the second epoch, once."""

    marks: str = ""

    def load(self, indices):
        """As in memory."""
        if 3 in indices:
            first, second = Path(self.marks, "first"), Path(self.marks, "second")
            if not first.exists():
                first.touch()
            elif not second.exists():
                second.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().load(indices)


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_nothing_else(ray_local, corpus, tmp_path):
    out, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    plan = tiny_plan("simclr", "checkpoint_every=1", "prefetch=1", "feed_threads=1", "evaluations=0", "max_failures=1")
    dying = Corpus(DyingItems(samples(), str(marks)), None, corpus.classes, {}, "memory", 0)
    summary = run_prepared(prepare_corpus(dying, plan, str(out), {}))
    assert (marks / "second").exists(), "the worker was killed"
    assert summary.status == "done"
    whole = fit(build("simclr"), samples(), plan.train_config)
    # As near as another number of threads lets float32 come; a step lost or doubled changes the third digit.
    assert losses(out, 6) == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def another_job(cpus: list[dict[str, int]]) -> None:
    """Reserves CPUs where Ray Train looks for room, as a job that was there first."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    ray.get(
        coordinator.get_or_create_autoscaling_coordinator().request_resources.remote(
            "another job", cpus, expire_after_s=600, priority=coordinator.ResourceRequestPriority.HIGH
        )
    )


@dataclass(frozen=True)
class ElasticItems(MemoryItems):
    """Sample 3's reader dies in the second epoch and its CPU goes to another job, which gives it back in the third."""

    marks: str = ""

    def load(self, indices):
        """As in memory."""
        if 3 in indices:
            reading = len(os.listdir(self.marks)) + 1
            Path(self.marks, str(reading)).touch()
            if reading == 2:
                another_job([{"CPU": 3}])
                os.kill(os.getpid(), signal.SIGKILL)
            if reading == 4:  # the third was the second epoch's once more
                another_job([])
                threading.Event().wait()  # until Ray Train ends this group for a larger one
        return super().load(indices)


def test_workers_lost_and_found_within_a_run_change_neither_its_ids_nor_its_losses(ray_local, corpus, tmp_path):
    """Two workers that share the weights, one after a death that left no room for two, and two again."""
    out, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    run = ("prefetch=1", "feed_threads=1", "evaluations=0", "checkpoint_every=1", "resize_every_s=0.1")
    plan = tiny_plan("mae", "epochs=3", "fsdp=true", *run, workers="1-2")
    elastic = Corpus(ElasticItems(samples(), str(marks)), None, corpus.classes, {}, "memory", 0)
    another_job([])
    try:
        summary = run_prepared(prepare_corpus(elastic, plan, str(out), {}))
    finally:
        another_job([])
    assert summary.status == "done"
    whole = [row["loss"] for row in fit(build("mae"), samples(), plan.train_config, tokenizer())]
    assert losses(out, 9) == pytest.approx(whole, rel=1e-4)
    ids = [[str(i) for _, i in Slice(0, 1, 8, 24, 0).places(step)] for step in range(9)]
    worlds: dict[int, set[int]] = {}
    for path in (out / "ids").iterdir():
        step, rank, world = map(int, re.findall(r"\d+", path.stem))
        share = 8 // world
        assert json.loads(path.read_text()) == ids[step][rank * share : (rank + 1) * share]
        worlds.setdefault(step, set()).add(world)
    assert len(worlds) == 9
    assert 2 in worlds[0], "it began with two"
    assert any(1 in seen for seen in worlds.values()), "it went on with one"
    assert worlds[8] == {2}, "and ended with two"


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(ray_local, corpus, tmp_path):
    plan = tiny_plan("mae", "base_lr=1e30", "warmup_epochs=0.4", "checkpoint_every=1", "evaluations=0")
    with pytest.raises(TrainingDiverged, match=r"loss became (nan|inf) at step \d .* checkpoints are in"):
        run_prepared(prepare_corpus(corpus, plan, str(tmp_path), {}))
    kept = sorted((tmp_path / "train").glob("step-*"))
    assert kept
    assert np.isfinite(losses(tmp_path, int(kept[-1].name[5:]))).all()
    assert not (tmp_path / "model").exists()
