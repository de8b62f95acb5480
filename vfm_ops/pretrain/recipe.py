"""What a paper's own code does: defaults by objective, version and network, each with the official file that has it.

A `Recipe` stands beside its objective. The objective's config and the trainer take their defaults from it and from
nowhere else, and `python -m vfm_ops.pretrain.defaults` writes it down as docs/objectives.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_VITS = ("vit", "deit", "beit", "eva", "naflexvit", "flexivit", "cait", "xcit", "dinov2", "clip", "siglip")


@dataclass(frozen=True)
class Default:
    """A value, and where the authors set it."""

    value: Any
    source: str  # repository and file, or paper and section


def official(source: str, **values: Any) -> dict[str, Default]:
    """Values that one file sets."""
    return {key: Default(value, source) for key, value in values.items()}


@dataclass(frozen=True)
class Recipe:
    """One way in which the authors train.

    when: settings that choose it, with `network` (vit or convnet) and `size` (base or large) read off the backbone.
    model, training: defaults of the objective's and the trainer's keys. built: what no key sets, in words that the built
    objective is held to. differs: where we differ on purpose, and why.
    """

    name: str
    when: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Default] = field(default_factory=dict)
    training: Mapping[str, Default] = field(default_factory=dict)
    built: Mapping[str, Default] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def model_values(self) -> dict[str, Any]:
        """Defaults of the objective's keys."""
        return {key: default.value for key, default in self.model.items()}

    def training_values(self) -> dict[str, Any]:
        """Defaults of the trainer's keys."""
        return {key: default.value for key, default in self.training.items()}


def choose(recipes: Sequence[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """The first recipe that no setting contradicts; the first of all when each is contradicted (validation then says why)."""
    asked = {**settings, **_network(settings)}
    fitting = (r for r in recipes if all(asked.get(key, wanted) == wanted for key, wanted in r.when.items()))
    return next(fitting, recipes[0])


def _network(settings: Mapping[str, Any]) -> dict[str, str]:
    """network and size of the backbone that is asked for; nothing when none is."""
    name = architecture_name(settings)
    if not name:
        return {}
    return {
        "network": "vit" if name.startswith(_VITS) else "convnet",
        "size": "large" if "large" in name else "base",
    }


def architecture_name(settings: Mapping[str, Any]) -> str:
    """timm's name of the backbone, or the type in a model directory; empty when neither is given or readable."""
    if not settings.get("weights"):
        return str(settings.get("backbone") or "").removeprefix("timm:")
    try:
        config = json.loads((Path(settings["weights"]) / "config.json").read_text())
    except (OSError, ValueError):
        return ""  # whoever loads the directory says what is wrong with it
    return str(config.get("architecture") or config.get("model_type") or "")


def patch_side(settings: Mapping[str, Any]) -> int | None:
    """Patch side of the backbone that is asked for, by its arguments or its name; None when neither tells."""
    given = (settings.get("backbone_args") or {}).get("patch_size")
    if given:
        return int(given)
    named = re.search(r"patch(\d+)", architecture_name(settings))
    return int(named.group(1)) if named else None
