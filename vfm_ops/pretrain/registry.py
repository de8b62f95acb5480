"""The nine objectives by name."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from pydantic import ValidationError

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.objective import Objective

_MODULES = {
    "supervised": "Supervised", "simclr": "SimCLR", "moco": "MoCo", "mae": "MAE", "beit": "BEiT", "dino": "DINO",
    "dinov2": "DINOv2", "clip": "CLIP", "siglip": "SigLIP",
}  # fmt: skip
OBJECTIVES = tuple(_MODULES)


def objective_class(name: str) -> type[Objective]:
    """The class of an objective; UsageError lists the known ones and the nearest."""
    if name not in _MODULES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown objective '{name}': one of {', '.join(OBJECTIVES)}{hint}")
    return getattr(importlib.import_module(f"vfm_ops.pretrain.{name}"), _MODULES[name])


def objective_config(name: str, **settings: Any) -> Any:
    """The validated config of an objective. UsageError names the key, and the nearest known one when it is unknown."""
    config_class = objective_class(name).Config
    try:
        return config_class(**settings)
    except ValidationError as error:
        raise UsageError(describe(error, f"objective {name}", list(config_class.model_fields))) from error


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
