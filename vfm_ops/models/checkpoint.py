"""A checkpoint on disk: its weight files and its settings, told apart by what the folder holds.

Nothing here imports torch, timm or transformers: a warm process finds its checkpoint by looking at files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models.cache import cache_root, digest_of, read_json, write_once

Kind = Literal["transformers", "timm", "openclip", "lite0", "file"]
_WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_CONFIG_NAMES = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json")
_TEXT_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. kind: whose format; config: its config.json; weights: its weight files, in name order."""

    kind: Kind
    folder: Path
    weights: tuple[Path, ...]
    config: dict[str, Any] = field(hash=False)

    @property
    def layout(self) -> str:
        """Whose files these are: transformers, timm, openclip or file. A package's are timm's under other names."""
        return "timm" if self.kind == "lite0" else self.kind

    @property
    def model_type(self) -> str:
        """That of transformers' config.json; empty in another layout."""
        return str(self.config.get("model_type", "")) if self.kind == "transformers" else ""

    def fingerprint(self) -> str:
        """Changes when a weight or settings file does, judged by path, size and time of change: no file is read."""
        names = (self.folder / n for n in _CONFIG_NAMES + _TEXT_NAMES)
        files = [*self.weights, *(p for p in names if p.exists())]
        stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return digest_of(self.kind, stats)

    def digest(self) -> str:
        """SHA-256 (hex) of the weight files' bytes, in name order."""
        sha = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    sha.update(block)
        return sha.hexdigest()


def remembered_digest(checkpoint: Checkpoint) -> str:
    """`Checkpoint.digest`, read from the files once for each state of them."""
    path = cache_root() / "digests" / f"{checkpoint.fingerprint()}.json"
    known = read_json(path) or write_once(path, {"digest": checkpoint.digest()})
    return str(known["digest"])


def read_folder(folder: Path) -> Checkpoint:
    """A checkpoint folder of transformers, timm (hf-hub style) or OpenCLIP, told apart by its settings file."""
    if not folder.is_dir():
        raise WeightsUnavailable(f"no model folder at {folder}: give a folder with config.json and model.safetensors")
    weights = weight_files(folder)
    if not weights:
        raise UsageError(
            f"{folder} holds no weights: expected model.safetensors (or pytorch_model.bin) beside config.json"
        )
    if (folder / "open_clip_config.json").exists():
        return Checkpoint("openclip", folder, weights, _settings(folder / "open_clip_config.json"))
    config = _settings(folder / "config.json")
    if "architecture" in config:
        return Checkpoint("timm", folder, weights, config)
    if "model_type" in config:
        return Checkpoint("transformers", folder, weights, config)
    raise UsageError(f"{folder}/config.json names neither `architecture` (timm) nor `model_type` (transformers)")


def processor_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings: preprocessor_config.json, or its part of processor_config.json; {} without either."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            settings = _settings(folder / name)
            return dict(settings.get("image_processor", settings))
    return {}


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} holds weights but no {path.name}: the architecture is unknown") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a JSON object: fetch it again")
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder by the names that libraries give them, shards in order; () without any."""
    for name in _WEIGHT_NAMES:
        path = folder / name
        if path.exists() and name.endswith(".index.json"):
            shards = sorted(set(_settings(path).get("weight_map", {}).values()))
            # A shard is a file beside its index: a name with a folder in it could point anywhere.
            return tuple(folder / Path(str(s)).name for s in shards)
        if path.exists():
            return (path,)
    return ()
