"""A pretraining run reads what it says, in the order it says, survives what may happen to it, and leaves a model that works."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.backfill import embed_lake
from pipelines.lake import Lake
from pipelines.pretrain import pretrain, run_prepared
from pipelines.pretraining.feed import Slice, Views, ray_feed, thread_feed
from pipelines.pretraining.history import History
from pipelines.pretraining.items import Corpus, MemoryItems, resolve
from pipelines.pretraining.page import render_page
from pipelines.pretraining.prepare import prepare, prepare_corpus
from pipelines.pretraining.settings import Plan, RunSettings, make_plan
from pipelines.pretraining.worker import Worker, WorkerJob
from pipelines.recipe import Embed, Resources
from tests.pipelines.picture_lake import picture_lake, select
from tests.vfm_ops.pretrain.tiny import TINY, build, samples, tokenizer
from vfm_ops.embed import describe_embedder
from vfm_ops.errors import UsageError
from vfm_ops.pretrain.fit import fit
from vfm_ops.pretrain.registry import objective_class, objective_config
from vfm_ops.pretrain.step import TrainingDiverged

TRAINING = ("batch_size=8", "epochs=2", "warmup_epochs=0.5", "base_lr=1e-3", "lr_scaling=none", "monitor_every=2")


def tiny_plan(objective: str, *overrides: str, workers: str = "1", selection: str | None = None) -> Plan:
    """Eight images a step, two epochs, the two-block backbone of the objectives' own tests."""
    model = [f"model.{key}={json.dumps(value)}" for key, value in TINY[objective].items() if key != "classes"]
    run = ("cpus_per_worker=1", "evaluations=1", "trace_ids=true")
    return make_plan(objective, selection=selection, overrides=[*model, *TRAINING, *run, *overrides], workers=workers)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """48 labelled and captioned pictures."""
    return picture_lake(tmp_path_factory.mktemp("pretrain") / "lake")


@pytest.fixture
def corpus() -> Corpus:
    """24 pictures in memory, so that `fit` can be the oracle."""
    return Corpus(MemoryItems(samples()), MemoryItems(samples(12)), ("red", "green", "blue"), {}, "memory", 0)


def losses(out: Path, step: int) -> list[float]:
    history = History.load(out / "train" / f"step-{step:08d}" / "history.json")
    assert [row["step"] for row in history.steps] == list(range(step))
    return [row["loss"] for row in history.steps]


def traced(out: Path) -> dict[int, list[str]]:
    """Ids of each step, ranks one after the other."""
    steps: dict[int, list[str]] = {}
    for path in sorted((out / "ids").iterdir()):
        steps.setdefault(int(path.name[5:13]), []).extend(json.loads(path.read_text()))
    return steps


# -- the feed ----------------------------------------------------------------------------------------------------------


def test_stopped_ten_times_and_resumed_on_other_workers_a_run_reads_the_same_ids():
    rng = np.random.default_rng()
    stops = [0, *sorted(rng.choice(np.arange(1, 40), 10, replace=False).tolist()), 40]
    alone = [place for step in range(40) for place in Slice(0, 1, 8, 20, 3).places(step)]
    broken = []
    for first, last in itertools.pairwise(stops):
        world = int(rng.choice([1, 2, 4, 8]))
        for step in range(first, last):
            broken += [place for rank in range(world) for place in Slice(rank, world, 8, 20, 3).places(step)]
    assert broken == alone, f"stopped at {stops}"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_read_the_samples_of_one_rank_in_its_order(world):
    alone = [place for step in range(7) for place in Slice(0, 1, 8, 20, 3).places(step)]
    together = [
        place for step in range(7) for rank in range(world) for place in Slice(rank, world, 8, 20, 3).places(step)
    ]
    assert together == alone
    for epoch in range(2):
        assert sorted(i for e, i in alone if e == epoch) == list(range(20)), "each sample once an epoch, none dropped"


def test_threads_and_ray_data_make_the_same_batches(ray_local, lake):
    import ray

    plan = tiny_plan("simclr")
    objective = build("simclr")
    items = resolve(lake, plan).train
    views = Views(items, objective.view_plan(objective.config), 0)
    part = Slice(1, 2, 8, len(items), 0)
    threads = list(thread_feed(views, part, 2, 5, threads=3, prefetch=2))
    remote = list(ray_feed(ray.put(views), part, 2, 5))
    assert len(threads) == len(remote) == 3
    for (mine, mine_ids), (theirs, their_ids) in zip(threads, remote, strict=True):
        assert mine_ids == their_ids
        assert len(mine_ids) == 4
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert np.array_equal(mine[key], theirs[key])


def test_an_undecodable_frame_is_replaced_so_that_the_batch_stays_full(tmp_path):
    lake = picture_lake(tmp_path / "lake", 8)
    lake.update("frames", {"jpeg": "X'00'"}, "frame_id LIKE '%3:0'")
    items = resolve(lake, tiny_plan("simclr", "holdout=0")).train
    assert [s["id"][31:] for s in items.load([2, 3, 4])] == ["2:0", "4:0", "4:0"]
    assert [int(items.load([3])[0]["label"])] == [int(items.labels[4])]


def test_items_follow_the_selection_in_frame_order_with_their_labels(tmp_path):
    lake = picture_lake(tmp_path / "lake", 12)
    chosen = [f"{i:032x}:0" for i in (7, 2, 9, 4)]
    select(lake, "four", chosen)
    corpus = resolve(lake, tiny_plan("simclr", "holdout=0", selection="four"))
    read = corpus.train.load(range(4))
    assert [s["id"] for s in read] == sorted(chosen)
    assert [corpus.classes[s["label"]] for s in read] == ["blue", "green", "green", "red"]
    assert [s["caption"] for s in read] == [f"a {corpus.classes[s['label']]} square" for s in read]


def test_held_out_assets_are_in_neither_training_nor_lost(lake):
    corpus = resolve(lake, tiny_plan("simclr", "holdout=0.3"))
    train, held = ({s["id"] for s in part.load(range(len(part)))} for part in (corpus.train, corpus.held))
    assert not train & held
    assert len(train) + len(held) == 48
    assert 5 <= len(held) <= 24


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_a_lake_becomes_a_model_that_embeds_with_its_card_and_curves(ray_local, lake, tmp_path):
    out = tmp_path / "out"
    summary = pretrain(lake, tiny_plan("supervised", "holdout=0.2", "epochs=3"), str(out))
    assert summary.status == "done"
    assert summary.step == summary.total_steps == round(3 * summary.samples / 8)
    assert summary.metrics["probe"] > 0.9, "colours are easy"
    assert {"knn", "effective_rank"} <= summary.metrics.keys()
    spec = f"timm:{out}/model"
    assert describe_embedder(spec).dim == 24
    assert embed_lake(lake, Embed(model=spec, runtime="torch", precision="exact"), Resources(device="cpu")) == 48
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
    assert losses(out, 6) == pytest.approx([row["loss"] for row in whole], rel=1e-6)


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


# -- the worker's loop, without a cluster ------------------------------------------------------------------------------


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


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch):
    """Fails the test when Ray would be started."""
    import ray

    def refuse(*args, **kwargs):
        raise AssertionError("Ray must not be started for a wrong command")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        (
            "clip",
            ["caption_column=text"],
            r"caption_column: neither frames nor assets has a column text; they have .*caption",
        ),
        ("clip", ["caption_column=uri_"], "neither frames nor assets has a column uri_"),
        (
            "simclr",
            ["backbone=vit_tinny_patch16_224"],
            "unknown backbone 'vit_tinny_patch16_224'.* did you mean vit_tiny",
        ),
        ("simclr", ["label_column=jpeg"], "column jpeg is large_binary; a label is text or a whole number"),
        ("simclr", ["batch_size=64"], "batch_size 64 is more than the"),
        ("clip", ["fsdp=true", "clip_grad=1"], "clip can't clip gradients when sharded"),
        ("moco", ["queue=30"], "queue of 30 keys is not divisible by the global batch 8"),
        ("supervised", ["classes=2"], "classes=2, but there are 3 different labels"),
        ("simclr", ["eval_selection=none"], "has no selection 'none'"),
        ("clip", ["vocabulary=64", "tokenizer=/nowhere"], "no tokenizer in /nowhere"),
    ],
)
def test_wrong_settings_are_named_before_ray_starts(no_ray, lake, tmp_path, objective, overrides, message):
    with pytest.raises(UsageError, match=message):
        prepare(lake, tiny_plan(objective, *overrides), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "simlcr"}, "unknown objective 'simlcr'.*did you mean simclr"),
        ({"objective": "simclr", "preset": "tiny"}, "unknown preset 'tiny'"),
        ({"objective": "simclr", "overrides": ["batchsize=8"]}, "no key batchsize; did you mean batch_size"),
        ({"objective": "simclr", "overrides": ["run.worker=2"]}, "unknown key worker; did you mean workers"),
        ({"objective": "simclr", "overrides": ["temperature=-1"]}, "temperature: input should be greater than 0"),
        ({"objective": "simclr", "overrides": ["batch_size"]}, "write it as key=value"),
        ({"objective": "simclr", "overrides": ["batch_size=30"], "workers": "4"}, "not divisible by 4 workers"),
        ({"objective": "simclr", "overrides": ["batch_size=8"], "workers": "2-4"}, "not divisible by 3 workers"),
        ({"objective": "simclr", "workers": "many"}, "write a number, or MIN-MAX"),
        ({"objective": "simclr", "workers": "4-2"}, r"run: workers: write a number from 1, or \[min, max\]"),
        ({}, "which objective"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_plan(**arguments)


def test_a_lake_without_what_the_objective_reads_is_refused(no_ray, tmp_path):
    bare = picture_lake(tmp_path / "bare", 12, labels=False, captions=False)
    with pytest.raises(UsageError, match=r"clip needs captions, and column caption of .* holds none"):
        prepare(bare, tiny_plan("clip"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"supervised needs labels, and column label of .* holds none"):
        prepare(bare, tiny_plan("supervised"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="has no frames yet: run vfm process"):
        prepare(Lake.create(tmp_path / "empty"), tiny_plan("simclr"), str(tmp_path / "out"))


def test_a_selection_that_no_longer_resolves_is_refused(no_ray, tmp_path):
    lake = picture_lake(tmp_path / "lake", 12)
    select(lake, "some", [f"{i:032x}:0" for i in range(10)])
    lake.delete("frames", "frame_id", [f"{5:032x}:0"])
    with pytest.raises(UsageError, match=rf"no longer resolves: 1 of its frames, such as {5:032x}:0"):
        prepare(lake, tiny_plan("simclr", selection="some"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="has no selection 'other'"):
        prepare(lake, tiny_plan("simclr", selection="other"), str(tmp_path / "out"))


def test_a_checkpoint_of_another_config_is_refused_by_name(no_ray, lake, tmp_path):
    ready = prepare(lake, tiny_plan("simclr"), str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "checkpoint_manager_snapshot.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps(ready.header))
    prepare(lake, tiny_plan("simclr", "accumulate=2", "keep=5"), str(tmp_path))  # these may change
    for change, message in (("temperature=0.3", "temperature was 0.1, now 0.3"), ("base_lr=0.5", "base_lr was 0.001")):
        with pytest.raises(UsageError, match=message):
            prepare(lake, tiny_plan("simclr", change), str(tmp_path))
    with pytest.raises(UsageError, match="objective was 'simclr', now 'mae'"):
        prepare(lake, tiny_plan("mae"), str(tmp_path))


def test_a_resumed_run_reads_the_rows_of_the_run_it_resumes(no_ray, tmp_path):
    lake, out = picture_lake(tmp_path / "lake", 24), tmp_path / "out"
    first = prepare(lake, tiny_plan("simclr"), str(out))
    (out / "train").mkdir(parents=True)
    (out / "train" / "checkpoint_manager_snapshot.json").write_text("{}")
    (out / "run.json").write_text(json.dumps(first.header))
    lake.delete("frames", "frame_id", [f"{5:032x}:0"])
    again = prepare(lake, tiny_plan("simclr"), str(out))
    ids = [[s["id"] for s in r.corpus.train.load(range(len(r.corpus.train)))] for r in (first, again)]
    assert ids[0] == ids[1]
    assert f"{5:032x}:0" in ids[1]


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_history_of_a_long_run_stays_small_and_keeps_its_ends():
    history = History()
    for step in range(50_000):
        history.add({"step": step, "loss": 1.0})
    assert len(history.steps) <= 10_001
    assert history.steps[0]["step"] == 0
    assert history.steps[-1]["step"] >= 49_990


def test_page_escapes_what_users_named():
    history = History(steps=[{"step": 0, "loss": 1.0}, {"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}])
    page = render_page("<b>", history, {"probe": 0.5}, {"selection": "<script>"}, warning="<i>")
    assert "<script>" not in page
    assert "<b>&lt;" not in page
    assert "nan" not in page


def test_the_recipe_writes_every_key_out_with_its_default():
    import yaml

    recipe = Path(__file__).parents[2] / "jobs" / "recipes" / "pretrain.yaml"
    written = yaml.safe_load(recipe.read_text())["run"]
    assert RunSettings(**written) == RunSettings()
    assert set(written) == set(RunSettings.model_fields)
    assert make_plan(recipe=str(recipe)).objective == "simclr"
