"""Backbones from directories: our own or timm's (config.json with `architecture`), and transformers'. Never the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.pretrain.backbones import build_backbone
from vfm_ops.pretrain.layouts import timm_arguments, to_timm
from vfm_ops.torch_state import keeps_torch_state


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a model directory; WeightsUnavailable when there is none."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise WeightsUnavailable(
            f"no config.json in {directory}: a timm or transformers model directory is wanted there"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error


@keeps_torch_state()
def load_backbone(directory: str | Path) -> nn.Module:
    """A timm model without classifier, with the weights of a directory in timm's or in transformers' layout.

    transformers families: ViT, ViTMAE (its encoder), DINOv2, BEiT, CLIP and SigLIP (their image towers).
    """
    config = read_config(directory)
    if "architecture" in config:
        return _load_timm(Path(directory), config)
    return _load_transformers(Path(directory))


def _load_timm(directory: Path, config: dict[str, Any]) -> nn.Module:
    from safetensors.torch import load_file

    args = {k: v for k, v in config.get("model_args", {}).items() if k not in ("num_classes", "in_chans", "img_size")}
    given = config.get("model_args", {})
    size = config.get("pretrained_cfg", {}).get("input_size", [3, 224, 224])
    channels = given.get("in_chans", size[0])
    backbone = build_backbone(config["architecture"], given.get("img_size", size[-1]), channels, args)
    path = directory / "model.safetensors"
    if not path.is_file():
        raise WeightsUnavailable(f"no model.safetensors in {directory}: put the weights there")
    state = load_file(path)
    classifier = tuple(f"{name}." for name in ("head", "fc", "classifier"))
    extra = [k for k in state if k not in backbone.state_dict() and not k.startswith(classifier)]
    missing = [k for k in backbone.state_dict() if k not in state]
    if extra or missing:
        raise UsageError(
            f"{path} is of another architecture than {config['architecture']}: {(extra + missing)[0]} does not fit"
        )
    backbone.load_state_dict({k: v for k, v in state.items() if k in backbone.state_dict()})
    return backbone


def _load_transformers(directory: Path) -> nn.Module:
    import timm

    model = _vision_model(directory)
    name, args = timm_arguments(model.config)
    backbone = timm.create_model(name, **args)
    # Not strict: index tables are computed, not learnt. `to_timm` has refused a checkpoint that lacks anything else.
    backbone.load_state_dict(
        to_timm(model.state_dict(), _shapes(backbone), model.config.model_type == "beit"), strict=False
    )
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = model.config.layer_norm_eps
    return backbone


def _vision_model(directory: Path) -> Any:
    """The image tower of a transformers directory, as transformers' own class."""
    from transformers import AutoConfig, AutoModel, CLIPModel, CLIPVisionModel, SiglipModel, SiglipVisionModel

    config = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    pairs = {"clip": CLIPModel, "siglip": SiglipModel}
    if config.model_type in pairs:
        return pairs[config.model_type].from_pretrained(str(directory), local_files_only=True).vision_model
    timm_arguments(config)  # an unknown family is refused before its weights are read
    towers = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
    return towers.get(config.model_type, AutoModel).from_pretrained(str(directory), local_files_only=True)


def _shapes(module: nn.Module) -> dict[str, Any]:
    """Shapes of all tensors that a checkpoint must bring: index tables are computed, not learnt."""
    return {k: v.shape for k, v in module.state_dict().items() if not k.endswith("relative_position_index")}


@keeps_torch_state()
def load_projection(directory: str | Path) -> Tensor | None:
    """CLIP's image projection (dim, width) of a transformers directory, None where it has none (SigLIP, timm)."""
    from transformers import AutoConfig, CLIPModel

    if "architecture" in read_config(directory):
        return None
    if AutoConfig.from_pretrained(str(directory), local_files_only=True).model_type != "clip":
        return None
    # The whole model: the towers' own configs may disagree with it about the projection's width.
    model = CLIPModel.from_pretrained(str(directory), local_files_only=True)
    return model.visual_projection.weight.detach().clone()
