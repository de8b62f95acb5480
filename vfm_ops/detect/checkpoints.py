"""Where a detector's weights are: a folder, or a hub id whose files are cached or can be fetched without hanging."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vfm_ops.embed.checkpoint import hub_reachable
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.pocket import pocket_path

PROBE_TIMEOUT_S = 3.0
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def find_checkpoint(family: str, name: str, model_type: str, families: dict[str, str]) -> Path:
    """Folder of a transformers checkpoint whose config says `model_type`.

    name: `pocket` (ships with the package), a folder, which never touches the network, or a hub id. families:
    model_type -> family, to name the spec that fits a checkpoint of another architecture.
    Raises WeightsUnavailable, or UsageError for another architecture.
    """
    folder = pocket_path(family) if name == "pocket" else Path(name).expanduser()
    if not folder.is_dir():
        if looks_like_path(name):
            raise WeightsUnavailable(
                f"{family}:{name}: there is no such folder; give one with config.json and model.safetensors"
            )
        folder = Path(fetch_from_hub(family, name))
    found = read_config(folder, family).get("model_type")
    if found != model_type:
        fitting = families.get(str(found))
        advice = f"use {fitting}:{name}" if fitting else f"known detectors: {', '.join(sorted(families.values()))}"
        raise UsageError(f"{family}:{name} is a checkpoint of {found!r}, not of {model_type!r}: {advice}")
    return folder


def looks_like_path(name: str) -> bool:
    """Whether `name` can only mean a place on disk; a hub id is `owner/name`, with at most one slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".pth", ".pt", ".safetensors"))


def read_config(folder: Path, family: str) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises UsageError when it is missing or no JSON object."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"{family}:{folder} has no config.json: it is no transformers checkpoint") from None
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} holds no JSON object: it is no transformers checkpoint")
    return config


def fetch_from_hub(family: str, name: str) -> str:
    """Folder of a hub id's files: cached ones first, else a download, tried only when the hub answers at once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    help_text = (
        f"the weights of {family}:{name} are not on this machine: run `hf download {name} --local-dir DIR` where there "
        f"is a network, copy DIR here, and use {family}:DIR"
    )
    try:
        return snapshot_download(name, local_files_only=True, allow_patterns=_FILES)
    except HFValidationError as error:
        raise UsageError(f"{family}:{name} is neither a folder nor a hub id such as owner/model") from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on") or not hub_reachable(
            PROBE_TIMEOUT_S
        ):
            raise WeightsUnavailable(help_text) from error
    try:
        return snapshot_download(name, allow_patterns=_FILES, etag_timeout=PROBE_TIMEOUT_S)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsUnavailable(f"{help_text} ({str(error).splitlines()[0]})") from error


def load_pretrained(model_class: Any, folder: Path, family: str) -> Any:
    """A transformers model in eval mode, every weight of it from the checkpoint; nothing is left at random.

    Raises UsageError when weights are missing or have other shapes, or when the file can't be read.
    """
    from safetensors import SafetensorError

    try:
        model, info = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsUnavailable(f"{family}:{folder} can't be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UsageError(f"{family}:{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    return model.eval()


def load_processor(processor_class: Any, folder: Path, family: str) -> Any:
    """The checkpoint's own tokenizer and image processor. Raises WeightsUnavailable when their files are missing."""
    try:
        return processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsUnavailable(
            f"{family}:{folder} lacks the processor's files (tokenizer.json, preprocessor_config.json): "
            f"{str(error).splitlines()[0]}"
        ) from error
