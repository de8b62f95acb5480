"""`vfm pretrain` as a user types it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.bench import pretrain
from jobs.bench.pretrain_objectives import Benchmark
from jobs.cli import main
from pipelines.pretraining.feed import Views
from pipelines.pretraining.launch import Loop
from pipelines.pretraining.prepare import Prepared
from pipelines.pretraining.worker import WorkerJob
from tests.pipelines.picture_lake import picture_lake
from tests.vfm_ops.pretrain.tiny import TINY
from vfm_ops.embed.embedder import load_embedder
from vfm_ops.pretrain.registry import OBJECTIVES, objective_class, objective_config
from vfm_ops.pretrain.step import Stepper


@pytest.fixture
def lake(tmp_path) -> str:
    """Twenty-four captioned pictures."""
    return picture_lake(tmp_path / "lake", 24).root


def settings(objective: str) -> list[str]:
    pairs = [f"model.{k}={json.dumps(v)}" for k, v in TINY[objective].items()]
    pairs += ["batch_size=8", "epochs=1", "warmup_epochs=0", "base_lr=1e-3", "holdout=0.2", "cpus_per_worker=1"]
    return [part for pair in pairs for part in ("--set", pair)]


def test_clip_from_captions_ends_with_zero_shot_and_a_model(ray_local, lake, tmp_path, capsys):
    out = tmp_path / "out"
    shape = ["--set", "backbone=vit_base_patch32_clip_224"]  # the form that transformers' CLIP has
    command = ["pretrain", "--objective", "clip", "--lake", lake, "--out", str(out), *settings("clip"), *shape]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "done"
    assert {"zero_shot", "image_to_text_recall_1", "probe"} <= facts["metrics"].keys()
    assert (out / "tokenizer" / "tokenizer.json").exists()
    assert facts["models"] == [f"timm:{out}/model", f"clip:{out}/transformers"]
    for spec in facts["models"]:
        embedder = load_embedder(spec, device="cpu", runtime="torch", precision="exact")
        assert np.isfinite(embedder.embed_images([np.zeros((16, 16, 3), np.uint8)])).all()
    assert embedder.embed_texts(["a red square"]).shape == (1, embedder.dim)
    assert main(command) == 0
    ended = capsys.readouterr().out
    assert "this run was already finished" in ended
    assert f"vfm embed --model timm:{out}/model or clip:{out}/transformers" in ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "simlcr"], "did you mean simclr"),
        (["--objective", "simclr", "--set", "caption=x"], "did you mean caption_column"),
        (["--objective", "mae", "--workers", "3"], "not divisible by 3 workers"),
        (["--objective", "mae", "--preset", "small"], "batch_size 128 is more than the"),
        (["--objective", "mae", "--selection", "none"], "has no selection 'none'"),
        (["--recipe", "/nowhere.yaml"], "there is no recipe /nowhere.yaml"),
    ],
)
def test_a_wrong_command_is_one_line_exit_code_2_and_writes_nothing(lake, tmp_path, capsys, arguments, message):
    assert main(["pretrain", "--lake", lake, "--out", str(tmp_path / "out"), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_keys_lists_every_setting_of_an_objective(capsys):
    assert main(["pretrain", "--lake", "x", "--objective", "dino", "--keys"]) == 0
    out = capsys.readouterr().out
    for line in ("prototypes: 65536", "centre_momentum: 0.9", "batch_size: 1024", "fsdp: false"):
        assert line in out


def test_trainer_and_bare_step_take_turns_of_as_many_steps(monkeypatch, tmp_path):
    """By a clock that only a step moves, the feed costs nothing; the trainer's first turn, which warms up, does not count."""
    ticks = [0]

    def step(self: Stepper, batch: dict[str, np.ndarray]) -> dict[str, float]:
        ticks[0] += 1 if ticks[0] else 100  # the very first one takes long
        self.step_index += 1
        return {"loss": 1.0, "step": self.step_index - 1}

    def launch(ready: Prepared, lineage: dict, loop: Loop) -> dict[str, list[float]]:
        corpus, plan = ready.corpus, ready.plan
        views = Views(corpus.train, objective_class("simclr").view_plan(objective_config("simclr", **ready.model)), 0)
        job = WorkerJob(
            "simclr", ready.model, plan.train_config, plan.run, len(corpus.train), (), views, None, ready.out, "threads",
            "cpu", lineage,
        )  # fmt: skip
        return loop({"job": job})

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(pretrain, "_clock", lambda: np.array([ticks[0], 2 * ticks[0]]))
    monkeypatch.setattr("pipelines.pretraining.launch.launch", launch)
    monkeypatch.setattr("ray.get", lambda held: held)
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    monkeypatch.setattr("ray.train.report", lambda *args, **how: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cost = pretrain.feeding(quick=True)
    assert cost == {"images_per_s": 16, "images_per_cpu_s": 8, "feeding_share": 1, "feeding_cpu_share": 1}


def test_an_interrupted_benchmark_measures_only_what_is_missing(tmp_path, monkeypatch):
    measured: list[str] = []

    def objective(name: str, until_step: int | None) -> dict[str, float]:
        measured.append(name)
        if name == "moco" and measured.count("moco") == 1:
            raise KeyboardInterrupt
        return {"probe": 0.5}

    monkeypatch.setattr(pretrain, "feeding", lambda quick: {"feeding_share": 1.0})
    bench = SimpleNamespace(pixels=lambda: {"probe": 0.4}, objective=objective)
    monkeypatch.setattr(Benchmark, "load", lambda bank: bench)
    kept = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        pretrain.measure(False, kept)
    rows = pretrain.measure(False, kept)
    assert [row["objective"] for row in rows] == ["raw pixels", *OBJECTIVES, "feeding"]
    place = OBJECTIVES.index("moco")
    assert measured == [*OBJECTIVES[: place + 1], *OBJECTIVES[place:]]
    pretrain.measure(True, kept)
    assert measured[-len(OBJECTIVES) :] == [*OBJECTIVES], "rows of a whole run do not stand for those of a quick one"
