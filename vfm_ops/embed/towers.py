"""The torch side: checkpoints become towers whose forward is what an embedding op needs, and nothing else.

ImageTower: uint8 pixels (B, H, W, 3) -> pooled (B, D), or (pooled, patch tokens (B, N, C)).
NaflexTower: uint8 patches (B, N, P*P*3), token mask (B, N), grid sizes (B, 2) -> the same.
TextTower: token ids (B, L) -> pooled (B, D).
Mean and std are folded in, so that frames travel as uint8. Loaded only where no converted graph is cached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm_ops.embed.family import Triple, embedding_family
from vfm_ops.embed.geometry import Geometry
from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.weights import load_transformers
from vfm_ops.torch_state import keeps_torch_state

Features = tuple[Tensor, Tensor]  # pooled_BD, tokens_BNC


@keeps_torch_state()
def load_model(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's whole model in float32 and eval mode, as its family loads it.

    Raises UsageError when the weights do not fit the architecture its settings name.
    """
    family = embedding_family(checkpoint)
    if family.load is not None:
        return family.load(checkpoint)
    from transformers import AutoModel

    return load_transformers(AutoModel, checkpoint.folder, may_lack=family.may_lack, **family.settings)


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
        self.features = embedding_family(checkpoint).features
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
        text = embedding_family(checkpoint).text
        if text is None:
            raise UsageError(f"{checkpoint.folder} has no text tower")
        self.tower = text.tower
        self.model = load_model(checkpoint)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.tower(self.model, ids_BL)
