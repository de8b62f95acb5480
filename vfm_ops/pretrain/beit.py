"""BEiT: predict the visual tokens of masked blocks of patches. Bao et al. 2022."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.backbones import masked_tokens, patch_size, require_vit
from vfm_ops.pretrain.losses.beit import beit_loss
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.masking import MaskPlan
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig, TrainDefaults
from vfm_ops.pretrain.vq import PatchVQ


class BEiTConfig(ObjectiveConfig):
    backbone: str = Field("beit_base_patch16_224", description="timm model name of a ViT or BEiT")
    patch: int = Field(16, gt=0, description="patch side in pixels, as the backbone has it")
    masked: int = Field(75, gt=0, description="patches masked in each image (75 of 196)")
    min_block: int = Field(16, gt=0, description="patches of the smallest masked rectangle")
    vocabulary: int = Field(8192, gt=1, description="visual tokens of the tokenizer")
    tokenizer_dim: int = Field(32, gt=0, description="width of a code; ours, the paper takes DALL-E's tokenizer")
    tokenizer_hidden: int = Field(256, gt=0, description="width of the tokenizer's layers")
    tokenizer_share: float = Field(0.1, ge=0, lt=1, description="share of the steps that trains the tokenizer, first")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image that a crop takes")
    jitter: float = Field(0.4, ge=0, description="strength of brightness, contrast and saturation jitter")


class BEiT(Objective):
    """First the tokenizer learns (its share of the steps), then it is frozen and the backbone predicts its ids."""

    name = "beit"
    Config = BEiTConfig
    defaults = TrainDefaults(
        base_lr=1.5e-3, lr_scaling="none", betas=(0.9, 0.98), clip_grad=3.0, epochs=800, batch_size=2048
    )
    batch_coupled = False
    knn_gate = False

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__(config)
        self.config: BEiTConfig = config
        require_vit(self.backbone, self.name)
        if patch_size(self.backbone) != config.patch:
            raise UsageError(
                f"beit: patch={config.patch} but the backbone's patches are {patch_size(self.backbone)} px"
            )
        self.tokenizer = PatchVQ(
            config.patch, config.channels, config.vocabulary, config.tokenizer_dim, config.tokenizer_hidden
        )
        self.mask_token = nn.Parameter(torch.zeros(self.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.classifier = nn.Linear(self.width, config.vocabulary)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def view_plan(cls, config: BEiTConfig) -> ViewPlan:
        side, j = config.image_size // config.patch, config.jitter
        crop = CropPlan("image", 1, config.image_size, config.crop_scale, flip_p=config.flip, jitter=(j, j, j, 0.0))
        mask = MaskPlan("mask", (side, side), "blockwise", count=config.masked, min_block=config.min_block)
        return ViewPlan((crop,), (mask,))

    def set_step(self, step: int) -> None:
        super().set_step(step)
        self.batch_coupled = self.learns_tokenizer  # the codebook moves once a step, by the whole batch

    @property
    def learns_tokenizer(self) -> bool:
        """Whether this step still trains the tokenizer."""
        return self.step < round(self.config.tokenizer_share * self.total_steps)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images = self.normalise(batch["image"])
        if self.learns_tokenizer:
            return {"images": images}
        self.tokenizer.eval()
        _, patches = masked_tokens(self.backbone, images, batch["mask"], self.mask_token)
        mask = batch["mask"]
        return {"patches": patches[mask], "token": self.tokenizer.tokenize(images)[mask]}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if "images" in features:
            return self.tokenizer(features["images"])
        logits_MV = widen(self.classifier(features["patches"]))
        accuracy = (logits_MV.argmax(-1) == features["token"]).float().mean()
        return {"loss": beit_loss(logits_MV, features["token"]), "token_accuracy": accuracy.detach()}
