"""Small plans of pretraining runs, and what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.pretraining.history import History
from pipelines.pretraining.settings import Plan, make_plan
from tests.vfm_ops.pretrain.tiny import TINY

TRAINING = ("batch_size=8", "epochs=2", "warmup_epochs=0.5", "base_lr=1e-3", "lr_scaling=none", "monitor_every=2")


def tiny_plan(objective: str, *overrides: str, workers: str = "1", selection: str | None = None) -> Plan:
    """Eight images a step, two epochs, the two-block backbone of the objectives' own tests."""
    model = [f"model.{key}={json.dumps(value)}" for key, value in TINY[objective].items() if key != "classes"]
    run = ("cpus_per_worker=1", "evaluations=1", "trace_ids=true")
    return make_plan(objective, selection=selection, overrides=[*model, *TRAINING, *run, *overrides], workers=workers)


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
