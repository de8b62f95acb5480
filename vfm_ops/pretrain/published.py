"""The authors' SimCLR and MoCo checkpoints as directories in timm's layout, which `vfm embed --model timm:DIR` and the key
`weights` of a pretraining run take:

    python -m vfm_ops.pretrain.published vit-b-300ep.pth.tar moco-v3
    vfm embed --lake lake --model timm:moco-v3

Their files hold the backbone under a prefix, beside heads, momentum encoders and queues; its tensors have torchvision's and
timm's names, which for a ResNet and a ViT are the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfm_ops.errors import UsageError, VfmError

# MoCo v3, MoCo v2, and a file that is the backbone alone (SimCLR in torchvision's names).
_PREFIXES = ("module.base_encoder.", "module.encoder_q.", "module.", "")
_VITS = {384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convert(file: str | Path, directory: str | Path) -> Path:
    """Writes config.json and model.safetensors. Raises UsageError for a file that holds neither a ResNet-50 nor a ViT-S or
    ViT-B of MoCo v3. Returns the directory."""
    import timm
    from safetensors.torch import save_file

    held = _read(Path(file))
    state = backbone_state(held)
    name, arguments = _architecture(state, Path(file))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **arguments)
    wanted = model.state_dict()
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if wrong:
        raise UsageError(f"{file} is no {name}: {wrong[0]} of {len(wrong)} tensors is missing or has another shape")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: state[key].contiguous() for key in wanted}, folder / "model.safetensors")
    # SimCLR scales pixels to [0, 1] and no further (its data_util.py); MoCo normalises by ImageNet's statistics.
    plain = not any(key.startswith("module.") for key in held)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (_MEAN, _STD)
    settings = {
        "architecture": name, "num_classes": 0, "num_features": model.num_features, "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, 224, 224], "mean": list(mean), "std": list(std), "interpolation": "bicubic",
            "crop_pct": 0.875, "crop_mode": "center", "num_classes": 0, "fixed_input_size": "vit" in name,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors without prefix and without heads."""
    prefix = next(p for p in _PREFIXES if any(key.startswith(p) for key in state))
    bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in bare.items() if not key.startswith(("fc.", "head."))}


def _read(file: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}") from None
    except Exception as error:  # pickle, zip and torch each have their own
        raise UsageError(f"{file} is no checkpoint that torch reads: {str(error).splitlines()[0]}") from error
    state = held.get("state_dict", held) if isinstance(held, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{file} holds no state_dict of tensors")
    return tensors


def _architecture(state: dict[str, Tensor], file: Path) -> tuple[str, dict[str, Any]]:
    if "layer4.2.conv3.weight" in state:
        return "resnet50", {}
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    if width not in _VITS:
        raise UsageError(f"{file} holds neither a ResNet-50 nor a ViT-S/16 or ViT-B/16")
    return _VITS[width], {"num_heads": 12}  # MoCo v3's ViT-S has twice the usual heads


if __name__ == "__main__":
    try:
        print(f"wrote {convert(*sys.argv[1:3])}")
    except VfmError as problem:
        sys.exit(f"error: {problem}")
