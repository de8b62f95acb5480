"""The one registry of objectives.

An objective is one file in `vfm_ops.pretrain.objectives`, named as it is: it calls `register`, and nothing else names it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.objectives import names
from vfm_ops.pretrain.presets import Preset
from vfm_ops.pretrain.recipe import Recipe, choose

FOLDER = "vfm_ops.pretrain.objectives"

_OBJECTIVES: dict[str, type[Objective]] = {}
OBJECTIVES = names()
AnyObjective = TypeVar("AnyObjective", bound=type[Objective])


def register(objective: AnyObjective) -> AnyObjective:
    """Makes an objective known under its name, as a decorator of its class. Raises ValueError for a name that is taken."""
    if objective.name in _OBJECTIVES:
        raise ValueError(f"two files register the objective {objective.name!r}")
    _OBJECTIVES[objective.name] = objective
    return objective


def objective_class(name: str) -> type[Objective]:
    """The class of an objective, whose file alone is imported; UsageError lists the known ones and the nearest."""
    if name not in _OBJECTIVES:
        if name not in names():
            near = difflib.get_close_matches(name, names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"unknown objective '{name}': one of {', '.join(names())}{hint}")
        importlib.import_module(f"{FOLDER}.{name}")
    if name not in _OBJECTIVES:
        raise ValueError(f"{FOLDER}.{name} registers no objective of that name: name the file as the objective")
    return _OBJECTIVES[name]


def small_preset(name: str) -> Preset:
    """The small preset of an objective. UsageError where it has none."""
    preset = objective_class(name).small
    if preset is None:
        raise UsageError(f"{name} has no small preset: without one, the paper's settings hold")
    return preset


def objective_config(name: str, **settings: Any) -> Any:
    """The validated config of an objective. UsageError names the key, and the nearest known one when it is unknown."""
    config_class = objective_class(name).Config
    try:
        return config_class(**settings)
    except ValidationError as error:
        raise UsageError(describe(error, f"objective {name}", list(config_class.model_fields))) from error


def recipe_of(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The authors' recipe that an objective's settings choose, by version and backbone."""
    return choose(objective_class(name).Config.recipes, settings)


def build_objective(name: str, **settings: Any) -> Objective:
    """An objective with randomly initialised weights."""
    return objective_class(name)(objective_config(name, **settings))


def describe(error: ValidationError, where: str, known: list[str]) -> str:
    """One sentence for the first thing that pydantic found wrong."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {key}: {first['msg'].lower()} (got {first.get('input')!r})"
    near = difflib.get_close_matches(key, known, n=1)
    return f"{where}: unknown key '{key}'" + (
        f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
    )
