"""`vfm pretrain`: a backbone from a lake or a selection of it, by one of the objectives; the same command again resumes."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.cli import run
from jobs.process import JsonOption, LakeOption, SetOption
from pipelines.lake import Lake
from vfm_ops.pretrain.objectives import names


def command(
    lake: LakeOption,
    objective: Annotated[str | None, typer.Option(help=f"One of {', '.join(names())}.")] = None,
    selection: Annotated[str | None, typer.Option(help="Of vfm curate; without it, every stored frame.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="YAML file; jobs/recipes/pretrain.yaml has every key of a run.")
    ] = None,
    set_: SetOption = None,
    preset: Annotated[str | None, typer.Option(help="small: learns within minutes on two cores.")] = None,
    out: Annotated[str | None, typer.Option(help="Directory or URL; default ./pretrained-OBJECTIVE.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Number, or MIN-MAX: elastic. Default: one a GPU, else 1.")
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key that --set takes, with its default, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Trains, evaluates, and exports directories in timm's and transformers' layouts that `vfm embed` takes as they are."""
    from pipelines.pretraining.settings import make_plan

    plan = make_plan(objective, preset, selection, set_ or [], recipe, workers)
    if keys:
        print(_keys(plan))
        return 0
    target = Lake.open(lake)
    from pipelines.pretraining import run_prepared  # torch is imported only for a command that is right
    from pipelines.pretraining.prepare import prepare

    place = out or f"pretrained-{plan.objective}"
    with _Bar(plan.objective) as bar:
        summary = run_prepared(prepare(target, plan, place), bar)
    facts = dict(summary.__dict__)
    print(json.dumps(facts) if as_json else _text(facts))
    return 0


def _keys(plan: Any) -> str:
    """Every key with its value in this plan and what it is for."""
    from pipelines.pretraining.settings import RunSettings
    from vfm_ops.pretrain.registry import objective_config

    parts = {
        "model": objective_config(plan.objective, **plan.model),
        "training": plan.train_config,
        "run": plan.run,
    }
    lines = []
    for name, part in parts.items():
        lines.append(f"{name}:")
        fields = RunSettings.model_fields if name == "run" else type(part).model_fields
        lines += [
            f"  {key}: {json.dumps(part.model_dump(mode='json')[key])}  # {f.description}" for key, f in fields.items()
        ]
    return "\n".join(lines)


class _Bar:
    """Steps, loss and images/s on a terminal; silent elsewhere."""

    def __init__(self, verb: str) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(verb, total=None, facts="starting")
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, facts: dict[str, Any]) -> None:
        """facts: step, total, loss, samples."""
        now = self._bar.get_time()
        self._first = self._first or (now, facts["samples"])
        rate = (facts["samples"] - self._first[1]) / max(now - self._first[0], 1e-9)
        text = f"loss {facts['loss']:.4f}  {rate:.0f} images/s"
        self._bar.update(self._task, total=facts["total"], completed=facts["step"], facts=text)


def _text(facts: dict[str, Any]) -> str:
    if facts["status"] == "stopped":
        return f"{facts['message']}; the same command without it goes on"
    metrics = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in facts["metrics"].items() if k != "evaluated")
    lines = [
        f"{metrics or 'no labels or captions to evaluate with'} ({facts['metrics'].get('evaluated', 0):.0f} held out)"
    ]
    if facts["left_out"]:
        lines.append(f"{facts['left_out']} frames were left out: they have no label or caption")
    if facts["warning"]:
        lines.append(f"collapse alarm: {facts['warning']}")
    if facts["message"]:
        lines.append(facts["message"])
    else:
        since = f" from step {facts['resumed_at']}" if facts["resumed_at"] else ""
        lines.append(
            f"{facts['step']} steps{since} over {facts['samples']} images in {facts['seconds']:.0f} s "
            f"({facts['images_per_s']:.0f} images/s with start-up and evaluation)"
        )
    lines.append(f"curves: {facts['out']}/report.html; embed with: vfm embed --model {' or '.join(facts['models'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(command))
