"""The recipe of a `process` run: YAML, validated, hashed. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

import vfm_ops.op
from pipelines.settings import parse_override, put_override, read_settings, validate
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.media.limits import Limits
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.op_registry import find_op, known_ops, parse_entry

if TYPE_CHECKING:
    from pipelines.lake import Lake

DEFAULT_OPS = ("quality", "phash")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(_Section):
    """Which frames of a video become rows of `frames`. An image is always one frame."""

    mode: Literal["all", "fps", "every_n", "keyframes", "per_shot"] = "fps"
    fps: float = Field(1.0, gt=0)  # mode fps: frames a second of presentation time
    every_n: int = Field(30, gt=0)  # mode every_n: each n-th frame
    per_shot: int = Field(3, gt=0)  # mode per_shot: frames spread evenly in each shot
    max_frames: int | None = Field(None, gt=0)  # cap a video, thinned evenly


class Shots(_Section):
    """Shot boundaries. `auto` is TransNetV2 where its package is installed, else the content detector."""

    detector: Literal["none", "auto", "content", "transnetv2"] = "none"
    threshold: float | None = None  # the detector's own default
    min_length_s: float = Field(0.4, ge=0)  # content detector: a cut that comes sooner is no cut
    min_motion: float | None = Field(None, ge=0, le=1)  # frames of stiller shots are left out


class Jpeg(_Section):
    """The stored picture of a frame. A still that already is an upright RGB JPEG keeps its bytes."""

    store: bool = True
    quality: int = Field(90, ge=1, le=100)
    max_side: int | None = Field(None, gt=0)  # pixels; larger frames are scaled down


class Decode(_Section):
    """Decoder and the limits that protect from hostile files."""

    decoder: Literal["auto", "pyav", "decord", "opencv"] = "auto"
    max_pixels: int = Field(Limits.max_pixels, gt=0)
    max_side: int = Field(Limits.max_side, gt=0)  # pixels
    memory_mb: int = Field(Limits.memory_mb, gt=0)  # of one decoder process
    max_bytes: int = Field(Limits.max_bytes, gt=0)
    max_duration_s: float = Field(Limits.max_duration_s, gt=0)
    deadline_s: float = Field(Limits.deadline_s, gt=0)  # without progress, before the decoder is killed

    def limits(self) -> Limits:
        """The limits as every decoder of a run takes them: one that is refused by none may fail in no later op."""
        return Limits(**self.model_dump(exclude={"decoder"}))


class Resources(_Section):
    """Where stages run. Never part of the hash: the rows are the same."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    fuse: bool | Literal["auto"] = "auto"  # decode and model in one actor; auto: yes on CPU, no on a GPU
    actors: int | tuple[int, int] | None = None  # model actors, fixed or (min, max); None: what the cluster holds
    cpus_per_actor: int | None = Field(None, gt=0)  # None: up to 8
    gpus_per_actor: float = Field(1.0, gt=0)  # a fraction shares a card
    decode_actors: int | tuple[int, int] | None = None  # when not fused
    deadline_s: float = Field(900.0, gt=0)  # of an op at one batch, before it is told to have failed

    @property
    def say_where(self) -> bool:
        """Whether they place anything: a run that they leave alone is placed by its size."""
        return self != Resources(deadline_s=self.deadline_s)


class Recipe(_Section):
    """Everything a `process` run does to an asset: how it is decoded, and the ops, in the order in which a row passes them.

    An entry of `ops` is a name (see `vfm ops`) or `package.module:Name`, or one of these with its settings: {name: {setting:
    value}}, or {name: value} for the op's main setting. `as` among the settings is what the op is called in this lake, where
    one kind of op is there twice; `resources` gives it actors of its own (`vfm_ops.op.Resources`). A key of the recipe that is
    an op's name is short for that op in the list: `detect: "person ."`, `embed: [a, b]`, `phash: false`.
    """

    sampling: Sampling = Sampling()
    shots: Shots = Shots()
    jpeg: Jpeg = Jpeg()
    ops: tuple[str | dict[str, Any], ...] = DEFAULT_OPS
    decode: Decode = Decode()
    resources: Resources = Resources()  # of all ops that have none of their own

    @classmethod
    def more_keys(cls) -> list[str]:
        """Keys that are no fields: names of ops, which are short for them."""
        return list(known_ops())

    @model_validator(mode="before")
    @classmethod
    def _named_ops(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        short = {key: data.pop(key) for key in list(data) if key not in cls.model_fields and key in known_ops()}
        ops = list(data.get("ops", DEFAULT_OPS)) if isinstance(data.get("ops", ()), list | tuple) else data["ops"]
        if isinstance(ops, list):
            ops = _without_shots(ops, data)
            for name, value in short.items():
                ops = put_op(ops, name, _since_format_1(name, value, data))
            data["ops"] = _with_prompts(ops)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.sampling.mode == "per_shot" and self.shots.detector == "none":
            raise ValueError("sampling mode per_shot needs shots: set shots.detector to auto, content or transnetv2")
        for entry in self.ops:
            try:
                op, _ = parse_entry(split_entry(entry)[2])
            except VfmError as error:
                raise ValueError(str(error)) from error
            if op.unit == "shot" and self.shots.detector == "none":
                raise ValueError(f"{op.name} is on shots: set shots.detector to auto, content or transnetv2")
            if op.table is not None and not self.jpeg.store:
                raise ValueError(f"{op.name} needs the stored frames, which its rows refer to: set jpeg.store to true")
        return self

    @property
    def hash(self) -> str:
        """Over what decides which frames there are, and their pictures: twelve hex digits for shots and pictures, a hyphen, and
        twelve for the sampling; no op, and no default, is in it. Frames of one half are found again under another sampling."""
        return f"{self.video_key}-{self._digest(set(type(self).model_fields) - {'sampling'})}"

    @property
    def picture_key(self) -> str:
        """Twelve hex digits over what decides how a stored picture looks."""
        return self._digest(set(type(self).model_fields) - {"jpeg"})

    @property
    def video_key(self) -> str:
        """Twelve hex digits over what decides how a video's frames and cuts look to an op on videos."""
        return self._digest(set(type(self).model_fields) - {"jpeg", "shots"})

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def _digest(self, without: set[str]) -> str:
        relevant = self.model_dump(exclude=without, exclude_defaults=True, mode="json")
        return hashlib.blake2b(json.dumps(relevant, sort_keys=True).encode(), digest_size=6).hexdigest()


def put_op(ops: list[Any], name: str, value: Any) -> list[Any]:
    """A list of ops with those of a name replaced, in their place, by `value`: settings, several of them, True for no settings,
    False or None for no such op."""
    values = value if isinstance(value, list | tuple) else [value]
    entries = [name if v is True or v == {} else {name: v} for v in values if v is not None and v is not False]
    places = [i for i, entry in enumerate(ops) if entry_name(entry) == name]
    place = places[0] if places else len(ops)
    kept = [(i, entry) for i, entry in enumerate(ops) if i not in places]
    return [e for i, e in kept if i < place] + entries + [e for i, e in kept if i >= place]


def entry_name(entry: Any) -> str:
    """Of which op an entry is; empty for what is no entry."""
    return str(next(iter(entry), "")) if isinstance(entry, dict) else str(entry)


def split_entry(
    entry: str | dict[str, Any],
) -> tuple[str, vfm_ops.op.Resources | None, str | dict[str, Any]]:
    """What `as` and `resources` among an entry's settings say (empty, None), and the entry without them. UsageError for what is
    no name, or no resources."""
    name = entry_name(entry)
    settings = entry[name] if isinstance(entry, dict) and len(entry) == 1 else None
    if not isinstance(settings, dict):
        return "", None, entry
    settings = dict(settings)
    alias, resources = settings.pop("as", ""), settings.pop("resources", None)
    if alias != "" and (not isinstance(alias, str) or not alias.isidentifier()):
        raise UsageError(f"op {name}: as: {alias!r} is no name for an op: letters, digits and _ only")
    if resources is not None:
        if not isinstance(resources, dict):
            raise UsageError(f"op {name}: resources: {resources!r} is no mapping, such as {{gpus: 0.5}}")
        resources = vfm_ops.op.validated_settings(f"{name}: resources", vfm_ops.op.Resources, resources)
    return alias, resources, {name: settings}


def _without_shots(ops: list[Any], data: dict[str, Any]) -> list[Any]:
    """An entry `shots` in the list is short for that section: frames are sampled by the cuts, which the same pass finds."""
    found = [entry for entry in ops if entry_name(entry) == "shots"]
    if found and (len(found) > 1 or "shots" in data):
        raise ValueError("shots are in the recipe twice: once in the list of ops, or as a section of its own")
    for entry in found:
        value = entry["shots"] if isinstance(entry, dict) else {}
        given = {"detector": value} if isinstance(value, str) else dict(value or {})
        data["shots"] = {"detector": "auto", **given}
    return [entry for entry in ops if entry_name(entry) != "shots"]


def _since_format_1(name: str, value: Any, data: dict[str, Any]) -> Any:
    """Settings as an op has them now: quality.measure and quality.min_motion were a switch and a property of shots."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, list | tuple):
        return [_since_format_1(name, v, data) for v in value]
    if name != "quality" or not isinstance(value, dict):
        return value
    value = dict(value)
    motion, measure = value.pop("min_motion", None), value.pop("measure", True)
    if motion is not None:
        data["shots"] = {**dict(data.get("shots") or {}), "min_motion": motion}
    return value if measure else False


def _with_prompts(ops: list[Any]) -> list[Any]:
    """`track` and `track_boxes` without prompts follow what the recipe's `detect` finds."""
    places = [i for i, entry in enumerate(ops) if entry_name(entry) in ("track", "track_boxes")]
    found = [next(iter(e.values())) for e in ops if isinstance(e, dict) and entry_name(e) == "detect"]
    for i in places:
        name = entry_name(ops[i])
        own = ops[i].get(name) if isinstance(ops[i], dict) else {}
        if isinstance(own, dict) and "prompts" not in own:
            if not found:
                raise ValueError(f'{name} needs detect: say what to follow, such as detect: "person . bicycle ."')
            theirs = {"prompts": found[0]} if isinstance(found[0], str) else dict(found[0])
            names = {"prompts": "prompts", "model": "detector", "threshold": "threshold", "nms_iou": "nms_iou"}
            names |= {"tiles": "tiles"} if name == "track_boxes" else {}
            ops[i] = {name: {**{names[k]: v for k, v in theirs.items() if k in names}, **own}}
    return ops


def load_recipe(path: str | None, overrides: Sequence[str] = (), lake: Lake | None = None) -> Recipe:
    """Reads a recipe file, applies `key.sub=value` overrides. UsageError with the key at fault.

    path: None for the recipe of the last run over `lake`, or the default recipe where there is none.
    """
    last = None if path or lake is None else _last_recipe(lake)
    data = read_settings(Path(path), "recipe") if path else last or default_recipe()
    for text in overrides:
        keys, value = parse_override(text, "sampling.fps=2")
        if len(keys) > 1 and keys[0] not in Recipe.model_fields and keys[0] not in data and keys[0] in known_ops():
            data[keys[0]] = _settings_of(data.get("ops", DEFAULT_OPS), keys[0])
        put_override(data, text, keys, value)
    return validate(Recipe, data, path or ("the recipe of the last run" if last else "the default recipe"))


def _last_recipe(lake: Lake) -> dict[str, Any] | None:
    """What the newest run over a lake has written down of its recipe."""
    from pipelines.lake.ledger import recipes_of_runs  # Lance is imported only where there is a lake

    texts = [text for _, text in recipes_of_runs(lake)]
    return dict(yaml.safe_load(texts[-1])) if texts else None


def _settings_of(ops: Sequence[Any], name: str) -> dict[str, Any]:
    """The settings of a recipe's only op of a name, to be changed; none where there is no such op."""
    entries = [entry for entry in ops if entry_name(entry) == name]
    if len(entries) > 1:
        raise UsageError(f"the recipe has {len(entries)} ops {name}: set the whole list, {name}=[...]")
    value = entries[0][name] if entries and isinstance(entries[0], dict) else {}
    return dict(value) if isinstance(value, dict) else {str(find_op(name).main): value}


def default_recipe() -> dict[str, Any]:
    """Shots, quality, a hash, and one embedding that needs no network; jobs/recipes/default.yaml writes every key out."""
    return {"shots": {"detector": "auto"}, "ops": [*DEFAULT_OPS, {"embed": {"model": DEFAULT_EMBEDDER}}]}
