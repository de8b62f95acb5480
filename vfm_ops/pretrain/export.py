"""A trained objective as a model directory that other tools load as it is.

timm layout (any backbone)              transformers layout (ViT backbones)
    config.json      architecture, model_args, pretrained_cfg      config.json   of the family
    model.safetensors   timm's names                               model.safetensors
    README.md        model card                                    README.md; tokenizer.json for CLIP and SigLIP
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm_ops.pretrain.backbones import is_vit
from vfm_ops.pretrain.layouts import dinov2_model, from_timm, vision_settings
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.text import save_tokenizer


def export_timm(objective: Objective, directory: str | Path, lineage: Mapping[str, Any] | None = None) -> Path:
    """Writes the evaluation backbone (a supervised model's with its classifier). timm reads it as `local-dir:DIR`, and
    `vfm embed --model timm:DIR`. lineage: for the model card, see `model_card`. Returns the directory."""
    from safetensors.torch import save_file

    config, folder = objective.config, Path(directory)
    backbone = copy.deepcopy(objective.evaluation_backbone()).cpu().eval()
    classes = _attach_classifier(backbone, objective)
    architecture, args = _timm_identity(objective)
    size = [config.channels, config.image_size, config.image_size]
    settings = {
        "architecture": architecture, "num_classes": classes, "num_features": objective.width, "model_args": args,
        "pretrained_cfg": {
            "input_size": size, "mean": list(config.mean[: config.channels]), "std": list(config.std[: config.channels]),
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash", "num_classes": classes,
            "fixed_input_size": not args.get("dynamic_img_size", not is_vit(backbone)),
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(objective, lineage or {}))
    return folder


def _timm_identity(objective: Objective) -> tuple[str, dict[str, Any]]:
    """(architecture, model_args) that rebuild the backbone: of the config, or of the weights it started from."""
    from vfm_ops.pretrain.layouts import timm_arguments
    from vfm_ops.pretrain.load import read_config

    config = objective.config
    if config.weights:
        source = read_config(config.weights)
        if "architecture" in source:
            return source["architecture"].split(".")[0], dict(source.get("model_args", {}))
        from transformers import AutoConfig

        given = AutoConfig.from_pretrained(config.weights, local_files_only=True)
        name, args = timm_arguments(getattr(given, "vision_config", given))
        return name, {k: v for k, v in args.items() if k != "num_classes"}
    name = config.backbone.removeprefix("timm:").split(".")[0]
    args = {"in_chans": config.channels, **config.timm_arguments()}
    if name.startswith(("vit_", "deit")):
        args = {"img_size": config.image_size, "dynamic_img_size": True, **args}
    elif name.startswith("beit"):
        args = {"img_size": config.image_size, **args}
    return name, args


def _attach_classifier(backbone: nn.Module, objective: Objective) -> int:
    """Puts an objective's linear `classifier` where timm has it. Returns the number of classes, 0 without one."""
    classifier = getattr(objective, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        return 0
    backbone.reset_classifier(classifier.out_features)
    backbone.get_classifier().load_state_dict(classifier.state_dict())
    return classifier.out_features


def export_transformers(
    objective: Objective, directory: str | Path, tokenizer: Any = None, lineage: Mapping[str, Any] | None = None
) -> Path:
    """Writes the transformers model that fits the objective: ViTMAEForPreTraining (mae, with its decoder), CLIPModel,
    SiglipModel, Dinov2Model (dinov2, or any ViT with layer scale), BeitModel, else ViTModel.

    UsageError for a backbone without such a layout (ResNet: use `export_timm`).
    """
    backbone = copy.deepcopy(objective.evaluation_backbone()).cpu().eval()
    model = _empty_transformers_model(objective, backbone)
    vision = _vision_part(model)
    state = vision.state_dict()
    beit = model.config.model_type == "beit"
    state |= from_timm(backbone.state_dict(), {key: value.shape for key, value in state.items()}, beit)
    vision.load_state_dict(state)
    with torch.no_grad():
        objective.fill_transformers(model)
    folder = Path(directory)
    model.save_pretrained(str(folder), safe_serialization=True)
    _write_processor(objective, folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    (folder / "README.md").write_text(model_card(objective, lineage or {}))
    return folder


_EMBED_FAMILIES = {
    "vit": "vit",
    "vit_mae": "vit-mae",
    "dinov2": "dinov2",
    "beit": "beit",
    "clip": "clip",
    "siglip": "siglip",
}


def embed_family(objective: Objective, directory: str | Path) -> str | None:
    """The family under which `vfm embed` reads what `export_transformers` wrote; None where it would pool otherwise than the
    objective was trained: a ViT or MAE is read at its class token there."""
    kind = json.loads((Path(directory) / "config.json").read_text())["model_type"]
    pool = getattr(objective.evaluation_backbone(), "global_pool", "token")
    return None if kind in ("vit", "vit_mae") and pool != "token" else _EMBED_FAMILIES.get(kind)


def _vision_part(model: nn.Module) -> nn.Module:
    return getattr(model, "vision_model", getattr(model, "vit", model))


def _empty_transformers_model(objective: Objective, backbone: nn.Module) -> Any:
    """A transformers model of the backbone's sizes."""
    import transformers as tf

    settings = vision_settings(backbone)
    if (model := objective.transformers_model(backbone, settings)) is not None:
        return model
    if type(backbone).__name__ == "Beit":
        block = backbone.blocks[0]
        extra = {
            "use_relative_position_bias": block.attn.relative_position_bias_table is not None,
            "use_shared_relative_position_bias": backbone.rel_pos_bias is not None,
            "use_absolute_position_embeddings": backbone.pos_embed is not None,
            "layer_scale_init_value": 0.1 if block.gamma_1 is not None else 0.0,
            "use_mean_pooling": backbone.global_pool == "avg",
        }  # fmt: skip
        return tf.BeitModel(tf.BeitConfig(**settings, **extra))
    if hasattr(backbone.blocks[0].ls1, "gamma"):
        return dinov2_model(settings)
    return tf.ViTModel(tf.ViTConfig(**settings), add_pooling_layer=False)


def _write_processor(objective: Objective, folder: Path) -> None:
    """preprocessor_config.json: squash to size, scale, normalise, as the objective was evaluated."""
    config = objective.config
    settings = {
        "image_processor_type": objective.image_processor, "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 2, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(config.mean[: config.channels]), "image_std": list(config.std[: config.channels]),
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def model_card(objective: Objective, lineage: Mapping[str, Any]) -> str:
    """Markdown: what was trained, on what, how, and how good it is.

    lineage: `selection`, `tables` (name: version), `code` (version), `metrics` (name: number), `training` (TrainConfig as a
    dict); each is optional and said to be unknown when absent.
    """
    parameters = sum(p.numel() for p in objective.evaluation_backbone().parameters())
    lines = [
        f"# {objective.config.backbone}, pretrained by {objective.name}",
        "",
        f"- parameters of the backbone: {parameters:,}",
        f"- input: {objective.config.image_size} px, {objective.config.channels} channels",
        f"- features: {objective.width} numbers, not normalised",
        f"- selection: {lineage.get('selection', 'unknown')}",
        f"- code: {lineage.get('code', 'unknown')}",
        *(f"- table {name}: version {version}" for name, version in lineage.get("tables", {}).items()),
        "",
    ]
    if lineage.get("metrics"):
        lines += [
            "| metric | value |",
            "|---|---|",
            *(f"| {k} | {_figure(v)} |" for k, v in lineage["metrics"].items()),
            "",
        ]
    for title, settings in (
        ("Objective", objective.config.model_dump(mode="json")),
        ("Training", lineage.get("training")),
    ):
        if settings:
            lines += [f"## {title}", "```json", json.dumps(settings, indent=2), "```", ""]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | Tensor) else str(value)
