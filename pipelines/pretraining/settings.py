"""What a pretraining run is told: objective, its settings, how to train, and how to run. Keys are checked before Ray starts.

objective: simclr          one of vfm_ops.pretrain.registry.OBJECTIVES
preset: small | null       the objective's own, under the keys below
selection: NAME | null     of `vfm curate`; null: every stored frame of the lake
model: {...}               the objective's own keys (backbone, image_size, temperature ...)
training: {...}            TrainConfig (batch_size, base_lr, epochs ...)
run: {...}                 RunSettings, below
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.settings import parse_override, read_settings, validate
from vfm_ops.errors import UsageError
from vfm_ops.pretrain.registry import objective_class, objective_config, small_preset
from vfm_ops.pretrain.train_config import TrainConfig, train_config


class RunSettings(BaseModel):
    """Where data comes from, on what it runs, what it keeps. Nothing here changes what is learnt, save the data's own keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_column: str = Field("label", description="of frames, else of assets; text or integers")
    caption_column: str = Field("caption", description="of frames, else of assets; a text, or a list to draw from")
    holdout: float = Field(0.05, ge=0, lt=1, description="share of the assets kept for evaluation where labels exist")
    eval_selection: str | None = Field(None, description="evaluate on this selection instead of held-out assets")
    eval_items: int = Field(10_000, gt=0, description="at most so many items are embedded for the final evaluation")
    evaluations: int = Field(5, ge=0, description="quick kNN and probe during the run, so many times")
    tokenizer: str = Field("", description="directory with tokenizer.json; empty: learnt from the captions")
    workers: int | tuple[int, int] | None = Field(
        None, description="number, or [min, max]: elastic; null: one a GPU, else 1"
    )
    resize_every_s: float = Field(60.0, gt=0, description="elastic: seconds between looks for room for other workers")
    cpus_per_worker: int | None = Field(None, gt=0, description="null: what the cluster has, shared out")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where the cluster has some")
    fsdp: bool = Field(False, description="shard weights, gradients and optimiser over the workers (FSDP2)")
    feed: Literal["auto", "threads", "ray"] = Field(
        "auto", description="threads in each worker, or Ray Data over all CPUs; auto: ray with GPUs"
    )
    feed_threads: int = Field(2, gt=0, description="decoding and augmenting threads of a worker, feed threads")
    prefetch: int = Field(4, gt=0, description="batches made ahead")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: one an epoch, at least 20 a run")
    keep: int = Field(2, gt=0, description="checkpoints kept")
    max_failures: int = Field(
        3, ge=-1, description="workers' deaths survived by going on from the last checkpoint; -1: any"
    )
    until_step: int | None = Field(
        None, gt=0, description="stop after this step with a checkpoint; the same command goes on"
    )
    trace_ids: bool = Field(False, description="write the ids of every step's samples to OUT/ids")

    @field_validator("workers")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        low, high = value if isinstance(value, tuple) else (value, value)
        if value is not None and not 1 <= low <= high:
            raise ValueError("write a number from 1, or [min, max] in rising order")
        return value


@dataclass(frozen=True)
class Plan:
    """A checked run. `model` and `training` hold what the user or the preset set; the rest is the authors' recipe."""

    objective: str
    model: dict[str, Any]
    training: dict[str, Any]
    run: RunSettings
    selection: str | None = None
    preset: str | None = None
    given: frozenset[str] = field(default_factory=frozenset)  # model keys that the user, not a preset, set

    @property
    def train_config(self) -> TrainConfig:
        """How to train, the values of the authors' recipe filled in."""
        return train_config(self.objective, self.model, **self.training)

    @property
    def needs_captions(self) -> bool:
        """Whether the objective reads a caption of each image."""
        return objective_class(self.objective).reads == "caption"

    @property
    def needs_labels(self) -> bool:
        """Whether the objective reads a label of each image."""
        return objective_class(self.objective).reads == "label"


def make_plan(
    objective: str | None = None,
    preset: str | None = None,
    selection: str | None = None,
    overrides: Sequence[str] = (),
    recipe: str | None = None,
    workers: str | None = None,
) -> Plan:
    """Recipe file, then options, then `key=value` overrides (`batch_size=64`, or `training.batch_size=64`).

    Raises UsageError naming the wrong key and its nearest known one, an unknown objective or preset, a batch that does not
    divide among the workers.
    """
    data = _read_recipe(recipe)
    name = objective or data.get("objective")
    if not name:
        raise UsageError("which objective? give `objective`, such as simclr, or name it in the recipe")
    sections = {part: dict(data.get(part) or {}) for part in ("model", "training", "run")}
    for override in overrides:
        _override(name, sections, override)
    if workers is not None:
        sections["run"]["workers"] = _worker_count(workers)
    preset = preset or data.get("preset")
    base_model, base_training = _preset(name, preset)
    plan = Plan(
        name,
        {**base_model, **sections["model"]},
        {**base_training, **sections["training"]},
        validate(RunSettings, sections["run"], "run"),
        selection or data.get("selection"),
        preset,
        frozenset(sections["model"]),
    )
    objective_config(name, **plan.model)
    check_workers(plan.train_config, plan.run.workers)
    return plan


def check_workers(config: TrainConfig, workers: int | tuple[int, int] | None) -> None:
    """UsageError unless the global batch divides among every number of workers that may run, and their micro-batches."""
    low, high = workers if isinstance(workers, tuple) else (workers or 1, workers or 1)
    for count in range(low, high + 1):
        if config.batch_size % (count * config.accumulate):
            unit = count * config.accumulate
            near = max(1, round(config.batch_size / unit)) * unit
            raise UsageError(
                f"batch_size {config.batch_size} is not divisible by {count} workers x {config.accumulate} micro-batches: "
                f"set batch_size={near}, or other workers"
            )


def _preset(objective: str, preset: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    objective_class(objective)  # an unknown objective is named before an unknown preset
    if preset is None:
        return {}, {}
    if preset != "small":
        raise UsageError(f"unknown preset '{preset}': the only one is small; without it, the paper's settings hold")
    small = small_preset(objective)
    return dict(small.model), dict(small.training)


def _read_recipe(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    data = read_settings(Path(path), "recipe")
    known = ("objective", "preset", "selection", "model", "training", "run")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"{path}: unknown key {key}; {hint}")
    return data


def _override(objective: str, sections: dict[str, dict[str, Any]], override: str) -> None:
    """Puts one key=value into the section that knows the key; the sections share no key."""
    keys, value = parse_override(override, "batch_size=64")
    known = {
        "model": list(objective_class(objective).Config.model_fields),
        "training": list(TrainConfig.model_fields),
        "run": list(RunSettings.model_fields),
    }
    key, section, inner = ".".join(keys), keys[0], ".".join(keys[1:])
    if inner and section in known:
        sections[section][inner] = value  # a wrong inner key is named when the section is validated
        return
    if inner and section == "backbone_args":
        sections["model"].setdefault("backbone_args", {})[inner] = value
        return
    owner = next((part for part, keys in known.items() if key in keys), None)
    if owner is None:
        every = [k for keys in known.values() for k in keys]
        near = difflib.get_close_matches(key, every, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(every)}"
        raise UsageError(f"`overrides` {override}: {objective} has no key {key}; {hint}")
    sections[owner][key] = value


def _worker_count(text: str) -> int | list[int]:
    """`4`, or `2-8` for an elastic run."""
    parts = text.split("-")
    if not all(p.isdecimal() for p in parts) or len(parts) > 2:
        raise UsageError(f"`workers` {text}: write a number, or MIN-MAX for an elastic run")
    numbers = [int(p) for p in parts]
    return numbers[0] if len(numbers) == 1 else numbers
