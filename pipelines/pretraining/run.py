"""`pretrain`: a lake or a selection of it -> a trained model that `vfm embed` takes, with its card, logs and curves.

    prepare   everything that can be wrong is found here, before Ray starts
    launch    Ray Train runs pipelines.pretraining.worker on each worker; a worker that dies costs the steps since a checkpoint
    publish   metrics.json and report.html beside the model that rank 0 exported
The same command again goes on where the last one stopped: the position in the data is the step.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pipelines.lake import Lake
from pipelines.pretraining.history import History
from pipelines.pretraining.launch import Progress, launch
from pipelines.pretraining.output import Output
from pipelines.pretraining.page import render_page
from pipelines.pretraining.prepare import Prepared, prepare
from pipelines.pretraining.settings import Plan
from pipelines.progress import State, callback, shows_progress
from vfm_ops.pretrain.step import CollapseStop, TrainingDiverged


@dataclass
class PretrainSummary:
    """How a run ended. status: 'done', or 'stopped' by until_step. models: specs that `vfm embed --model` takes."""

    status: str
    out: str
    step: int
    total_steps: int
    metrics: dict[str, float]
    seconds: float
    samples: int
    left_out: int
    resumed_at: int = 0
    warning: str | None = None
    message: str = ""
    images_per_s: float | None = None
    models: list[str] = field(default_factory=list)


def _so_far(facts: dict[str, Any]) -> State:
    return facts["step"], facts["total"], f"steps, loss {facts['loss']:.4f}"


@shows_progress("pretrain", _so_far)
def pretrain(lake: Lake, plan: Plan, out: str, progress: Progress | bool | None = None) -> PretrainSummary:
    """Trains, or goes on where the same call stopped, and returns how it ended.

    Args:
        lake: An open lake with stored pictures.
        plan: What to train, and how; of `make_plan`.
        out: Directory or URL for checkpoints, the model and its report.
        progress: A bar in a notebook (None), anywhere (True), nowhere (False); or what is called with a dict of step, total,
            loss and samples.

    Returns:
        How it ended, its metrics, and the specs of the models that it left.

    Raises:
        UsageError: Before Ray starts.
        TrainingDiverged, CollapseStop: With the last good checkpoint kept.
        VfmError: Workers died more often than max_failures.

    Example:
        >>> plan = make_plan("simclr", preset="small", selection="curated")
        >>> pretrain(Lake.open("lake"), plan, "run").models
    """
    return run_prepared(prepare(lake, plan, out), callback(progress))


def run_prepared(ready: Prepared, progress: Progress | None = None) -> PretrainSummary:
    """The part of `pretrain` that needs Ray."""
    started, config, samples = time.monotonic(), ready.plan.train_config, len(ready.corpus.train)
    summary = PretrainSummary(
        "done",
        ready.out,
        config.total_steps(samples),
        config.total_steps(samples),
        {},
        0.0,
        samples,
        ready.corpus.left_out,
    )
    if ready.finished is not None:
        summary.metrics, summary.models = ready.finished["metrics"], ready.finished["models"]
        summary.message = "this run was already finished"
        return summary
    _record(ready)
    outcome = launch(ready, _lineage(ready), progress)
    summary.seconds = time.monotonic() - started
    for key in ("status", "message", "step", "metrics", "resumed_at", "warning", "models"):
        setattr(summary, key, outcome[key])
    summary.images_per_s = (summary.step - summary.resumed_at) * config.batch_size / summary.seconds
    if summary.status == "diverged":
        raise TrainingDiverged(f"{summary.message}; checkpoints are in {ready.out}/train")
    if summary.status == "collapsed":
        raise CollapseStop(summary.message)
    if summary.status == "done":
        _publish(ready, outcome, summary)
    return summary


def _record(ready: Prepared) -> None:
    """Writes what a resume must agree with, once it is sure that the run begins."""
    output = Output(ready.out)
    output.put("run.json", json.dumps(ready.header, indent=1).encode())
    if ready.tokenizer is not None:
        output.put("tokenizer/tokenizer.json", ready.tokenizer.encode())


def _lineage(ready: Prepared) -> dict[str, Any]:
    """What the model card says of where the weights come from."""
    where = ready.header.get("lake", "samples in memory")
    return {
        "selection": f"{ready.corpus.name} of {where}, {len(ready.corpus.train)} images",
        "tables": ready.corpus.versions,
        "code": f"vfm-pipelines {version('vfm-pipelines')}",
        "training": ready.plan.train_config.model_dump(mode="json"),
        "items": ready.corpus.digest,
        "classes": list(ready.corpus.classes[:1000]),
    }


def _publish(ready: Prepared, outcome: dict[str, Any], summary: PretrainSummary) -> None:
    output = Output(ready.out)
    pictures = {name: base64.b64encode(data).decode() for name, data in outcome["pictures"].items()}
    lineage = {**_lineage(ready), "objective": ready.header["objective_config"]}
    title = f"{ready.plan.objective}, {summary.step} steps, {summary.samples} images"
    page = render_page(title, History(**outcome["history"]), summary.metrics, lineage, summary.warning, pictures)
    output.put("report.html", page.encode())
    facts = summary.__dict__
    output.put("metrics.json", json.dumps(facts, indent=1).encode())
