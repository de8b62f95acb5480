"""docs/objectives.md: every default of the objectives with the official file that sets it. Run after a change:

    python -m vfm_ops.pretrain.defaults docs/objectives.md

One row a default, from the recipes beside the objectives, which is where the code reads them too; what our small presets
do otherwise, and why; and the detectors' thresholds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm_ops.pretrain.presets import REASONS
from vfm_ops.pretrain.recipe import Recipe
from vfm_ops.pretrain.registry import OBJECTIVES, objective_class, recipe_of
from vfm_ops.pretrain.train_config import TrainConfig


@dataclass(frozen=True)
class Row:
    """One default. kind: `model` and `training` are keys of `--set`; `built` is what no key sets."""

    objective: str
    recipe: Recipe
    kind: str
    key: str
    value: Any
    source: str

    def __str__(self) -> str:
        return f"{self.objective}, {self.recipe.name}: {self.key}"


@dataclass(frozen=True)
class Deviation:
    """A key in which a small preset leaves the authors' recipe."""

    objective: str
    key: str
    value: Any
    official: Any
    reason: str


def rows() -> list[Row]:
    """All defaults, in the table's order."""
    return list(_rows())


def _rows() -> Iterator[Row]:
    for name in OBJECTIVES:
        for recipe in objective_class(name).Config.recipes:
            for kind in ("model", "training", "built"):
                for key, default in getattr(recipe, kind).items():
                    yield Row(name, recipe, kind, key, default.value, default.source)


def deviations() -> list[Deviation]:
    """What the small presets do otherwise than the recipe that they choose."""
    found = []
    for name in OBJECTIVES:
        preset = objective_class(name).small
        if preset is None:
            continue
        model, training, reasons = preset.model, preset.training, {**REASONS, **preset.reasons}
        recipe = recipe_of(name, model)
        kinds = (
            (model, recipe.model_values(), objective_class(name).Config),
            (training, recipe.training_values(), TrainConfig),
        )
        for settings, authors_values, config in kinds:
            for key, value in settings.items():
                authors = authors_values.get(key, config.model_fields[key].default)
                if value != authors:
                    found.append(Deviation(name, key, value, authors, reasons[key]))
    return found


def markdown() -> str:
    """The page."""
    lines = [
        "# Defaults of the objectives",
        "",
        "What `vfm pretrain` does where you set nothing: what the authors' own code does, by version and backbone. Each row",
        "is a default with the file that sets it; a test holds the configured value, and the optimiser, head or view that is",
        "built from it, to the row. Rows of kind `model` and `training` are keys of `--set` (`vfm pretrain --objective O",
        "--keys` lists them); rows of kind `built` have no key. `python -m vfm_ops.pretrain.defaults` writes this page.",
        "",
        "| objective | recipe | kind | default | value | from |",
        "|---|---|---|---|---|---|",
        *(f"| {r.objective} | {r.recipe.name} | {r.kind} | {r.key} | {_text(r.value)} | {r.source} |" for r in rows()),
        "",
        "## Where we differ on purpose",
        "",
        *(
            f"- {name}, {recipe.name}: {sentence}"
            for name in OBJECTIVES
            for recipe in objective_class(name).Config.recipes
            for sentence in recipe.differs
        ),
        "",
        "## Small presets",
        "",
        "`--preset small` is for small data and minutes on two cores. It keeps the authors' recipe but for these keys:",
        "",
        "| objective | key | preset | official | because |",
        "|---|---|---|---|---|",
        *(f"| {d.objective} | {d.key} | {_text(d.value)} | {_text(d.official)} | {d.reason} |" for d in deviations()),
        "",
        "## Checkpoints from before these defaults",
        "",
        "A run that began with other defaults goes on with them: the refusal names the settings to give. Fixed positions keep",
        "the name and shape of the learnt ones, so old weights load; `fixed_positions=false` lets them learn on.",
        "",
        "## Least scores of detectors",
        "",
        "`vfm detect`, the recipe's `detect.threshold`, tracking and the server take the family's own where none is asked for.",
        "",
        "| family | least score | from |",
        "|---|---|---|",
        *(f"| {family} | {score} | {source} |" for family, score, source in thresholds()),
        "",
    ]
    return "\n".join(lines)


def thresholds() -> list[tuple[str, float, str]]:
    """(family, least score, source) of every family of detectors."""
    from vfm_ops.detect.loading import detector_classes

    classes = detector_classes().values()
    return [(c.family, c.default_threshold, c.threshold_source) for c in classes]


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown())
