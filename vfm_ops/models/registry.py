"""The one registry of model families, and the spec `family:name-or-path` that every command, recipe and notebook takes.

A family is one file in one of FOLDERS: it calls `register` with its facts and cards, and what runs it. Nothing else names it,
so that another family is another file there (docs/adding-a-model.md). Family files import no model library at their top: the
list of families is there at once, and in a process that has no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from vfm_ops.errors import UsageError
from vfm_ops.models.cards import ModelCard
from vfm_ops.models.checkpoint import Checkpoint

FOLDERS = ("vfm_ops.embed.families", "vfm_ops.detect.families", "vfm_ops.segment.families", "vfm_ops.media.families")
# What is said of a family that is asked for what it can't do.
_CANNOT = {
    "embed": "makes no embeddings",
    "detect": "detects nothing",
    "segment": "segments nothing",
    "track": "tracks nothing",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a family of models without loading one.

    name: prefix of its specs. tasks: what it serves, such as embed, detect, segment, track. cards: checkpoints worth knowing.
    layout: whose files it loads: transformers, timm, openclip, or `file`. model_types: those of config.json that it loads.
    unfit: task -> model_type -> what such a checkpoint is, where not all of `model_types` serve the task.
    repository: the hub repository of a name. packaged: the checkpoint of a name that an installed package ships, or None.
    find: instead of all that, the checkpoint of a name; raises WeightsUnavailable.
    """

    name: str
    tasks: tuple[str, ...]
    cards: tuple[ModelCard, ...] = ()
    layout: str = "transformers"
    model_types: Collection[str] = ()
    unfit: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    repository: Callable[[str], str] = str
    packaged: Callable[[str], Checkpoint | None] | None = None
    find: Callable[[str], Checkpoint] | None = None

    def loads(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint's files are of this family, by what its settings say."""
        if checkpoint.layout != self.layout:
            return False
        return self.layout != "transformers" or checkpoint.model_type in self.model_types


_FAMILIES: dict[str, Family] = {}
AnyFamily = TypeVar("AnyFamily", bound=Family)


def register(family: AnyFamily) -> AnyFamily:
    """Makes a family known under its name; called once, where its file is imported. Raises ValueError for a taken name."""
    if family.name in _FAMILIES:
        raise ValueError(f"two files register the model family {family.name!r}")
    _FAMILIES[family.name] = family
    return family


@cache
def _discover() -> None:
    for folder in FOLDERS:
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
            importlib.import_module(f"{folder}.{module.name}")


def families(task: str | None = None) -> list[Family]:
    """All families, or those that serve a task: by what they serve first of all, then by name, whatever was imported first."""
    _discover()
    places = {name: place for place, name in enumerate(_CANNOT)}
    found = [f for f in _FAMILIES.values() if task is None or task in f.tasks]
    return sorted(found, key=lambda f: (places.get(f.tasks[0], len(places)), f.name))


def family_of(checkpoint: Checkpoint) -> Family | None:
    """The family that loads a checkpoint, or None where none does."""
    return next((f for f in families() if f.loads(checkpoint)), None)


def parse_spec(spec: str, task: str | None = None) -> tuple[Family, str]:
    """`family:name-or-path` to its family and the rest.

    Raises UsageError for an unknown family, one that can't do `task`, or a spec that names no checkpoint.
    """
    prefix, colon, name = spec.partition(":")
    fitting = ", ".join(f.name for f in families(task))
    family = next((f for f in families() if f.name == prefix), None)
    if family is None:
        raise UsageError(f"unknown model family {prefix!r} in {spec!r}: use one of {fitting}")
    if task is not None and task not in family.tasks:
        raise UsageError(f"{prefix!r} {_CANNOT[task]}: use one of {fitting}")
    if not colon or not name.strip():
        known = f", with one of {fitting}" if task else ""
        raise UsageError(f"model {spec!r} names no checkpoint: write {prefix}:name or {prefix}:/path/to/folder{known}")
    return family, name.strip()
