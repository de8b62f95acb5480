"""What CLIP and SigLIP share: two towers, a caption for each image, zero-shot classification with class names."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.text import build_text_tower, load_text_tower, text_features


class ImageTextConfig(ObjectiveConfig):
    mean: tuple[float, ...] = Field((0.48145466, 0.4578275, 0.40821073), description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.26862954, 0.26130258, 0.27577711), description="per channel, of pixels in [0, 1]")
    text_model: str = Field("", description="transformers directory whose text tower to start from; empty: a new one")
    vocabulary: int = Field(gt=4, description="tokens of a new text tower")
    text_length: int = Field(gt=2, description="tokens a caption is cut or padded to")
    text_width: int = Field(gt=0, description="width of a new text tower")
    text_depth: int = Field(gt=0, description="layers of a new text tower")
    text_heads: int = Field(gt=0, description="attention heads of a new text tower")
    dim: int = Field(gt=0, description="width of the shared space; of SigLIP the image tower's, when it is published")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")
    flip: float = Field(ge=0, le=1, description="probability of a flip; captions may say left or right")


class ImageText(Objective):
    """Image tower (backbone, projection) and text tower into one space; subclasses bring scale and loss."""

    Config: ClassVar[type[ObjectiveConfig]] = ImageTextConfig
    reads = "caption"
    text_family: ClassVar[str]

    logit_scale: nn.Parameter

    def __init__(self, config: ImageTextConfig) -> None:
        super().__init__(config)
        self.config: ImageTextConfig = config
        if config.text_model:
            self.text: Any = load_text_tower(self.text_family, config.text_model)
        else:
            c = config
            self.text = build_text_tower(
                self.text_family, c.vocabulary, c.text_length, c.text_width, c.text_depth, c.text_heads, c.dim
            )
        self.projection: nn.Module = nn.Linear(self.width, config.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=self.width**-0.5)

    @classmethod
    def view_plan(cls, config: Any) -> ViewPlan:
        crop = CropPlan(
            "image", 1, config.image_size, config.crop_scale, flip_p=config.flip, interpolation=config.interpolation
        )
        return ViewPlan((crop,), tokens=config.text_length)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> unit vectors (B, dim)."""
        return F.normalize(widen(self.projection(self.backbone(images))), dim=-1)

    def encode_text(self, token_BT: Tensor) -> Tensor:
        """Ids (B, T) -> unit vectors (B, dim)."""
        return F.normalize(widen(text_features(self.text, token_BT)), dim=-1)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.encode_image(self.normalise(batch["image"])), "text": self.encode_text(batch["tokens"])}

    @torch.no_grad()
    def embed_pair_space(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> unit vectors in the shared space, for zero-shot and retrieval."""
        return self.encode_image(self.normalise(images))

    def fill_transformers(self, model: Any) -> None:
        """The text tower without its projection, and the logit scale."""
        tower = self.text.state_dict()
        inner = {k.removeprefix("text_model."): v for k, v in tower.items() if not k.startswith("text_projection.")}
        model.text_model.load_state_dict(inner)
        model.logit_scale.copy_(self.logit_scale)
