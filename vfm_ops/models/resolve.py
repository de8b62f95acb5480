"""The one way from a spec to its weights: a folder, the local hub cache, an installed package, or the hub, in that order."""

from __future__ import annotations

from pathlib import Path

from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint, read_folder
from vfm_ops.models.hub import cached_snapshots, download
from vfm_ops.models.registry import Family, families, family_of, parse_spec
from vfm_ops.models.shipped import pocket_path


def find_checkpoint(spec: str, task: str) -> Checkpoint:
    """The checkpoint of a model spec that is to serve a task (embed, detect, segment or track); nothing is loaded.

    Raises UsageError for a family that can't, or a checkpoint of another family, naming the one to use;
    WeightsUnavailable where the weights are not to be had: what to download, where from, and where to put it.
    """
    if ":" not in spec and task in ("segment", "track"):
        spec = f"sam2:{spec}"  # a bare folder or hub id: SAM 2 is the one family that does both
    family, name = parse_spec(spec, task)
    checkpoint = locate(family.name, name)
    _check(family, name, checkpoint, task)
    return checkpoint


def locate(family_name: str, name: str) -> Checkpoint:
    """The checkpoint that a model spec's two parts name, whatever it turns out to be.

    `pocket` is the small model that ships with the package. A name that is a folder (or looks like a path) is taken from
    disk and never touches the network. Raises UsageError for a path that holds no checkpoint, WeightsUnavailable when there
    is no such path, or a hub name is neither on disk nor can be downloaded.
    """
    family = next(f for f in families() if f.name == family_name)
    if name == "pocket":
        return read_folder(pocket_path(family_name))
    if family.find is not None:
        return family.find(name)
    if looks_like_path(name) or Path(name).is_dir():
        return read_folder(Path(name).expanduser())
    repository = family.repository(name)
    for folder in cached_snapshots(repository):
        return read_folder(folder)
    packaged = family.packaged(name) if family.packaged is not None else None
    return packaged or read_folder(download(repository, name, family_name, name))


def looks_like_path(name: str) -> bool:
    """Whether `name` can only mean a place on disk; a hub id is `owner/name`, with at most one slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".pth", ".pt", ".safetensors"))


def _check(family: Family, name: str, checkpoint: Checkpoint, task: str) -> None:
    """UsageError where the folder is another family's, or can't serve the task."""
    unfit = family.unfit.get(task, {}).get(checkpoint.model_type)
    if unfit is not None:
        wanted = " or ".join(sorted(set(family.model_types) - set(family.unfit[task])))
        raise UsageError(f"{name} is {unfit}; to {task} takes one whose model_type is {wanted}")
    if family.loads(checkpoint):
        return
    if family.layout == "timm" and task == "embed":
        return  # `timm:` takes any backbone, also as transformers saves it: our own pre-training writes both
    found = checkpoint.model_type or str(checkpoint.config.get("architecture") or checkpoint.layout)
    other = family_of(checkpoint)
    served = other is not None and task in other.tasks
    advice = f"use {other.name}:{name}" if other and served else f"to {task} takes {_listed(task)}"
    wanted = ", ".join(family.model_types) or f"{family.layout}'s layout"
    raise UsageError(f"{family.name}:{name} is a checkpoint of {found!r}, not of {wanted}: {advice}")


def _listed(task: str) -> str:
    return ", ".join(f.name for f in families(task))
