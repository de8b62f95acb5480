"""`pretrain`: a lake or a selection of it -> a trained backbone that `vfm embed` takes, with its card, logs and curves.

    prepare   everything that can be wrong is found here, before Ray starts
    launch    Ray Train runs pipelines.pretraining.worker on each worker; a worker that dies costs the steps since a checkpoint
    publish   metrics.json and report.html beside the model that rank 0 exported
The same command again goes on where the last one stopped: the position in the data is the step.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.lake import Lake
from pipelines.pretraining.items import Corpus, resolve
from pipelines.pretraining.output import Output
from pipelines.pretraining.settings import Plan, check_workers
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.registry import build_objective, objective_config
from vfm_ops.pretrain.step import CollapseStop, TrainingDiverged, check_same_run

Progress = Callable[[dict[str, Any]], None]


@dataclass
class PretrainSummary:
    """How a run ended. status: 'done', or 'stopped' by until_step."""

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


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be right."""

    plan: Plan
    corpus: Corpus
    model: dict[str, Any]  # the objective's settings with the number of classes filled in
    tokenizer: str | None  # JSON
    out: str
    header: dict[str, Any]  # run.json
    finished: dict[str, Any] | None = None  # metrics.json of a run that is already done


def pretrain(lake: Lake, plan: Plan, out: str, progress: Progress | None = None) -> PretrainSummary:
    """Trains, or goes on, and returns how it ended.

    Raises UsageError before Ray starts; TrainingDiverged and CollapseStop with the last good checkpoint kept; VfmError when
    workers died more often than max_failures.
    """
    return run_prepared(prepare(lake, plan, out), progress)


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
        summary.metrics, summary.message = ready.finished["metrics"], "this run was already finished"
        return summary
    outcome = _launch(ready, progress)
    summary.seconds = time.monotonic() - started
    for key in ("status", "message", "step", "metrics", "resumed_at", "warning"):
        setattr(summary, key, outcome[key])
    summary.images_per_s = (summary.step - summary.resumed_at) * config.batch_size / summary.seconds
    if summary.status == "diverged":
        raise TrainingDiverged(f"{summary.message}; checkpoints are in {ready.out}/train")
    if summary.status == "collapsed":
        raise CollapseStop(summary.message)
    if summary.status == "done":
        _publish(ready, outcome, summary)
    return summary


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(lake: Lake, plan: Plan, out: str) -> Prepared:
    """Resolves the items, learns or loads the tokenizer, builds the objective once, and compares with an earlier run in `out`.

    Raises UsageError naming what is wrong; then at most `out` was created.
    """
    out = out if "://" in out else str(Path(out).expanduser().absolute())
    output = Output(out)
    earlier = _earlier(output)
    corpus = _resolve(lake, plan, earlier)
    return prepare_corpus(corpus, plan, out, {"lake": lake.root})


def prepare_corpus(corpus: Corpus, plan: Plan, out: str, source: dict[str, Any]) -> Prepared:
    """As `prepare`, from items that are already resolved."""
    output = Output(out)
    earlier = _earlier(output)
    model = _with_classes(plan, corpus)
    header = {
        "objective": plan.objective,
        "objective_config": objective_config(plan.objective, **model).model_dump(mode="json"),
        "train_config": plan.train_config.model_dump(mode="json"),
        "samples": len(corpus.train),
        "selection": corpus.name,
        "items": corpus.digest,
        "versions": corpus.versions,
        **source,
    }
    if earlier is not None:
        keys = ("objective", "objective_config", "train_config", "samples", "selection", "items")
        check_same_run(earlier, {key: json.loads(json.dumps(header[key])) for key in keys})
    check_workers(plan.train_config, plan.run.workers)
    tokenizer = _tokenizer(plan, corpus, model, output)
    objective = build_objective(plan.objective, **model)
    objective.prepare(1, 1, plan.train_config.batch_size)
    if plan.run.fsdp and plan.objective == "beit":
        raise UsageError("beit does not run sharded: its tokenizer and backbone learn in turns; set fsdp=false")
    if earlier is None:
        output.put("run.json", json.dumps(header, indent=1).encode())
    done = output.get("metrics.json")
    return Prepared(plan, corpus, model, tokenizer, out, header, json.loads(done) if done and earlier else None)


def _earlier(output: Output) -> dict[str, Any] | None:
    data = output.get("run.json")
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError:
        raise UsageError(f"{output.out}/run.json is damaged: name another --out, or remove it to start anew") from None


def _resolve(lake: Lake, plan: Plan, earlier: dict[str, Any] | None) -> Corpus:
    """The items; for a resume, those of the earlier run."""
    if earlier is None:
        return resolve(lake, plan)
    try:
        return resolve(lake, plan, earlier["versions"])
    except UsageError:
        raise
    except VfmError:
        # The pinned versions were cleaned up: the newest rows do if they are the same, which the digest tells.
        return resolve(lake, plan)


def _with_classes(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """The objective's settings; a classifier gets as many classes as there are labels unless the user said otherwise."""
    if not plan.needs_labels:
        return plan.model
    found = len(corpus.classes)
    if found < 2:
        raise UsageError(f"{plan.objective} needs at least two different labels; {corpus.name} has {found}")
    if "classes" not in plan.given:
        return {**plan.model, "classes": found}
    if int(plan.model["classes"]) < found:
        raise UsageError(f"classes={plan.model['classes']}, but there are {found} different labels: leave classes out")
    return plan.model


def _tokenizer(plan: Plan, corpus: Corpus, model: dict[str, Any], output: Output) -> str | None:
    """JSON of the tokenizer: of the earlier run, of a directory, or learnt from the captions; written to OUT/tokenizer."""
    if not plan.needs_captions:
        return None
    stored = output.get("tokenizer/tokenizer.json")
    if stored is not None:
        return stored.decode()
    from vfm_ops.pretrain.text import load_tokenizer, train_tokenizer

    vocabulary = objective_config(plan.objective, **model).vocabulary
    if plan.run.tokenizer or model.get("text_model"):
        tokenizer = load_tokenizer(plan.run.tokenizer or model["text_model"])
    else:
        tokenizer = train_tokenizer(_captions(corpus), vocabulary)
    if tokenizer.get_vocab_size() > vocabulary and not model.get("text_model"):
        raise UsageError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower {vocabulary}: set "
            f"vocabulary={tokenizer.get_vocab_size()}"
        )
    output.put("tokenizer/tokenizer.json", tokenizer.to_str().encode())
    return tokenizer.to_str()


def _captions(corpus: Corpus, most: int = 1_000_000) -> list[str]:
    """Up to `most` training captions, spread evenly."""
    captions = corpus.train.captions
    texts = []
    for place in range(0, len(corpus.train), max(1, len(corpus.train) // most)):
        value = captions[place] if captions is not None else None
        value = value.as_py() if hasattr(value, "as_py") else value
        texts += value if isinstance(value, list) else [value]
    return [t for t in texts if t]


# -- launch ------------------------------------------------------------------------------------------------------------


def _launch(ready: Prepared, progress: Progress | None) -> dict[str, Any]:
    """Runs Ray Train to the end. Returns what rank 0's worker returned."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from pipelines.cluster import connect
    from pipelines.pretraining.feed import Views
    from pipelines.pretraining.worker import WorkerJob, train_worker

    connect()
    plan, run = ready.plan, ready.plan.run
    scaling, device, feed = _scale(ready)
    config = objective_config(plan.objective, **ready.model)
    view_plan = _view_plan(plan.objective, config)
    views = Views(ready.corpus.train, view_plan, plan.train_config.seed, ready.tokenizer)
    job = WorkerJob(
        plan.objective, ready.model, plan.train_config, run, len(ready.corpus.train), ready.corpus.classes, ray.put(views),
        ray.put(ready.corpus.held), ready.out, feed, device, _lineage(ready),
    )  # fmt: skip
    trainer = TorchTrainer(
        train_worker,
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
    with _Watch(ready.out, progress):
        try:
            return trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _cause(error, ready) from error


def _view_plan(objective: str, config: Any) -> Any:
    from vfm_ops.pretrain.registry import objective_class

    return objective_class(objective).view_plan(config)


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
        num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": each, **({"GPU": 1} if on_gpu else {})}
    )
    return scaling, "cuda" if on_gpu else "cpu", feed


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


# -- publish -----------------------------------------------------------------------------------------------------------


def _publish(ready: Prepared, outcome: dict[str, Any], summary: PretrainSummary) -> None:
    from pipelines.pretraining.history import History
    from pipelines.pretraining.page import render_page

    output = Output(ready.out)
    pictures = {
        name: base64.b64encode(data).decode()
        for name in outcome.get("pictures", ())
        if (data := output.get(f"pictures/{name}.png"))
    }
    lineage = {**_lineage(ready), "objective": ready.header["objective_config"]}
    title = f"{ready.plan.objective}, {summary.step} steps, {summary.samples} images"
    page = render_page(title, History(**outcome["history"]), summary.metrics, lineage, summary.warning, pictures)
    output.put("report.html", page.encode())
    facts = replace(summary).__dict__
    output.put("metrics.json", json.dumps(facts, indent=1).encode())
