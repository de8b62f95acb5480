"""The recipe of `vfm curate`: YAML, validated as a process recipe is; its hash names what a selection was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.settings import parse_override, put_override, read_settings, validate

Preference = Literal["resolution", "sharpness", "oldest", "newest"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Filters(_Section):
    """Bounds on quality, as `process` measured it; an item without a measure passes."""

    min_sharpness: float | None = Field(None, ge=0)
    min_luminance: float | None = Field(None, ge=0, le=1)
    max_luminance: float | None = Field(None, ge=0, le=1)
    min_contrast: float | None = Field(None, ge=0, le=0.5)
    min_entropy: float | None = Field(None, ge=0, le=8)
    min_side: int | None = Field(None, gt=0)  # pixels of the shorter side


class Perceptual(_Section):
    """Near-equal pictures by 64-bit perceptual hash."""

    radius: int = Field(4, ge=0, lt=32)  # bits that may differ
    dihedral: bool = False  # also flipped and turned copies; decodes every picture once


class VideoCopies(_Section):
    """Whole and partial copies between videos, by aligned runs of frame matches."""

    radius: int = Field(8, ge=0, lt=32)
    min_duration_s: float = Field(3.0, gt=0)
    min_matches: int = Field(4, gt=0)


class Semantic(_Section):
    """Neighbours in embedding space."""

    cosine: float = Field(0.95, gt=0, le=1)


class Aligned(_Section):
    """Candidates by embedding, verified by aligning the pictures; finds crops, turns, overlays and flips."""

    candidate_cosine: float = Field(0.6, gt=0, le=1)
    per_item: int = Field(8, gt=0)


class Deduplicate(_Section):
    """Strengths of deduplication, in the order in which they run. `keep` says who stays, first criterion first."""

    exact: bool = True
    video: VideoCopies | None = None
    perceptual: Perceptual | None = None
    semantic: Semantic | None = None
    aligned: Aligned | None = None
    keep: tuple[Preference, ...] = ("resolution", "sharpness", "oldest")


class ItemSet(_Section):
    """Items from elsewhere: a folder of images, another lake, or a selection of a lake (of this one without `lake`)."""

    folder: str | None = None
    lake: str | None = None
    selection: str | None = None
    frames: tuple[str, ...] = ()  # frame ids of the lake

    @model_validator(mode="after")
    def _names_something(self) -> ItemSet:
        if bool(self.folder) == bool(self.lake or self.selection or self.frames):
            raise ValueError("name a folder, or a lake, a selection or frames of it, but not both")
        return self

    @property
    def name(self) -> str:
        """How reasons and reports call it."""
        if self.folder or self.lake:
            base = Path(self.folder or self.lake or "").name
            return f"{base}:{self.selection}" if self.selection else base
        return self.selection or f"{len(self.frames)} frames"


class Decontaminate(_Section):
    """Near-copies of evaluation sets are dropped."""

    sets: tuple[ItemSet, ...] = Field(min_length=1)
    cosine: float = Field(0.95, gt=0, le=1)
    radius: int = Field(6, ge=0, lt=32)


class Retrieve(_Section):
    """Only what lies near a curated seed set stays."""

    seeds: ItemSet
    mode: Literal["nearest", "clusters", "classes"] = "nearest"
    k: int = Field(4, gt=0)  # nearest: neighbours of each seed
    min_seeds: int = Field(1, gt=0)  # clusters: seeds that must fall into a cluster
    per_cluster: int | None = Field(None, gt=0)  # clusters: at most so many of each
    total: int = Field(1000, gt=0)  # classes: items in all, as many of each class as there are


class Cluster(_Section):
    """Hierarchical k-means with resampling. `levels`, finest first; 'auto' takes about 20 items a finest cluster."""

    levels: tuple[int, ...] | Literal["auto"] = "auto"
    metric: Literal["cosine", "l2"] = "cosine"
    resamplings: int = Field(3, ge=0)
    iterations: int = Field(25, gt=0)


class Prune(_Section):
    """SemDeDup: within a finest cluster, drop what says little that an item kept before it does not."""

    cosine: float = Field(0.9, gt=0, le=1)
    keep: Literal["far", "near", "random"] = "far"  # from the centroid


class Sample(_Section):
    """Balanced top-down sampling over the clusters."""

    target: int | float = 0.5  # items, or a share of those that are left
    within: Literal["random", "nearest"] = "random"
    replacement: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> Sample:
        if self.target <= 0 or (isinstance(self.target, float) and self.target > 1):
            raise ValueError(f"target must be a number of items, or a share between 0 and 1, not {self.target}")
        return self


class CurationResources(_Section):
    """Where it runs; never part of the hash, as the selection is the same."""

    backend: Literal["auto", "local", "ray"] = "auto"  # auto: Ray where a cluster is joined and the vectors are many
    workers: int = Field(0, ge=0)  # threads or actors; 0: one a core
    device: Literal["auto", "cpu", "cuda"] = "auto"


class CurationRecipe(_Section):
    """Everything that decides which items of a lake are selected."""

    column: str | None = None  # embedding column or model spec; None: the only one
    where: str | None = None  # SQL over frames and assets: what is considered at all
    bad_vectors: Literal["refuse", "drop"] = "refuse"  # NaN or all-zero ones
    filters: Filters = Filters()
    deduplicate: Deduplicate = Deduplicate(perceptual=Perceptual(), semantic=Semantic())
    decontaminate: Decontaminate | None = None
    retrieve: Retrieve | None = None
    cluster: Cluster | None = Cluster()
    prune: Prune | None = None
    sample: Sample | None = Sample()
    seed: int = 0
    resources: CurationResources = CurationResources()

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`sets: [folder]` and `seeds: folder` are short for item sets; `sample: 2000` for a target; true for defaults."""
        if not isinstance(data, dict):
            return data
        data = {k: _switch(k, v) for k, v in data.items()}
        if isinstance(data.get("sample"), int | float):
            data["sample"] = {"target": data["sample"]}
        if isinstance(duplicates := data.get("deduplicate"), dict):
            data["deduplicate"] = {k: _switch(k, v) for k, v in duplicates.items()}
        if isinstance(evaluation := data.get("decontaminate"), dict) and isinstance(evaluation.get("sets"), list):
            data["decontaminate"] = {**evaluation, "sets": [_item_set(s) for s in evaluation["sets"]]}
        if isinstance(retrieve := data.get("retrieve"), dict) and "seeds" in retrieve:
            data["retrieve"] = {**retrieve, "seeds": _item_set(retrieve["seeds"])}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> CurationRecipe:
        retrieved = self.retrieve and self.retrieve.mode
        needs = [
            name
            for name, wanted in (
                ("sample", self.sample is not None),
                ("prune", self.prune is not None),
                *((f"retrieve.mode {mode}", mode == retrieved) for mode in ("clusters", "classes")),
            )
            if wanted
        ]
        if needs and self.cluster is None:
            raise ValueError(
                f"{needs[0]} needs clusters: add a cluster section, or set {needs[0].split('.')[0]} to null"
            )
        return self

    @property
    def hash(self) -> str:
        """Twelve hex digits over all that changes the selection."""
        relevant = self.model_dump(exclude={"resources"}, mode="json")
        return hashlib.blake2b(json.dumps(relevant, sort_keys=True).encode(), digest_size=6).hexdigest()

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_curation_recipe(path: str | None, overrides: Sequence[str] = ()) -> CurationRecipe:
    """Reads a recipe file (None: the defaults), applies `key.sub=value` overrides. UsageError with the key at fault."""
    data = read_settings(Path(path), "recipe") if path else {}
    for text in overrides:
        keys, value = parse_override(text, "sample.target=2000")
        for depth in range(1, len(keys)):  # a switch, such as `semantic: true`, becomes a section
            section = data
            for key in keys[: depth - 1]:
                section = section[key]
            if not isinstance(section.get(keys[depth - 1]), dict):
                section[keys[depth - 1]] = {}
        put_override(data, text, keys, value)
    return validate(CurationRecipe, data, path or "the default curation")


def _switch(key: str, value: Any) -> Any:
    """true and false switch a section on and off."""
    sections = ("cluster", "sample", "prune", "perceptual", "semantic", "video", "aligned")
    return ({} if value else None) if key in sections and isinstance(value, bool) else value


def _item_set(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith("selection:"):
        return {"selection": value.removeprefix("selection:")}
    is_lake = "://" in value or (Path(value).expanduser() / "lake.json").exists()
    return {"lake": value} if is_lake else {"folder": value}
