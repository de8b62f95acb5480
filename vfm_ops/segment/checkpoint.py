"""SAM and SAM 2 checkpoints: found on disk or in the hub's cache, told apart, and loaded whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.models import SEGMENT_FAMILIES

# config.json's model_type -> what it is, in words, and which task it serves.
KNOWN = {
    "sam": "a SAM image checkpoint",
    "sam2": "a SAM 2 image checkpoint, without the memory modules that tracking needs",
    "sam2_video": "a SAM 2 video checkpoint",
}


# The model types that serve a task.
ACCEPTED = {"segment": ("sam", "sam2", "sam2_video"), "track": ("sam2_video",)}


def find_checkpoint(spec: str, task: Literal["segment", "track"]) -> tuple[Path, dict[str, Any]]:
    """Folder and config.json of a `sam:` / `sam2:` spec, a folder, or a hub id; nothing is loaded.

    Raises UsageError for another architecture, saying which one it is;
    WeightsUnavailable when the weights are neither on disk nor to be had.
    """
    from vfm_ops.embed.checkpoint import locate

    family, colon, name = spec.partition(":")
    if not colon:
        family, name = "sam2", spec
    if family not in SEGMENT_FAMILIES or not (name == "pocket" or "/" in name or Path(name).is_dir()):
        raise UsageError(
            f"{spec!r} names no SAM checkpoint: write sam2:FOLDER, sam2:pocket, or a hub id such as "
            "sam2:facebook/sam2.1-hiera-tiny or sam:facebook/sam-vit-base"
        )
    found = locate(family, name)
    model_type = str(found.config.get("model_type") or found.config.get("architecture"))
    if model_type not in ACCEPTED[task]:
        known = KNOWN.get(model_type, f"a checkpoint of the architecture {model_type!r}")
        wanted = " or ".join(ACCEPTED[task])
        raise UsageError(f"{name} is {known}; to {task} takes one whose model_type is {wanted}")
    return found.folder, found.config


def load_model(model_class: Any, folder: Path, config: Any = None) -> Any:
    """A transformers model in eval mode and float32, all of it from the checkpoint: nothing is left at random.

    config: where the model is to be built by another configuration than its config.json.
    Raises WeightsUnavailable when the files can't be read, UsageError when they lack some of the model's weights.
    """
    import torch
    from safetensors import SafetensorError

    try:
        model, info = model_class.from_pretrained(
            folder, config=config, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsUnavailable(f"{folder} can't be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: fetch it again")
    return model.eval()


def preprocessing(folder: Path) -> dict[str, Any]:
    """image_mean, image_std and size of preprocessor_config.json (or processor_config.json), as far as they are there."""
    import json

    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise UsageError(f"{path} is not valid JSON ({error}): fetch it again") from error
        return dict(settings.get("image_processor", settings))
    return {}
