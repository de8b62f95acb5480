"""SimCLR: two strongly augmented views of an image agree, against all other images. Chen et al. 2020."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.heads import projector
from vfm_ops.pretrain.losses.nt_xent import nt_xent
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig, TrainDefaults


class SimCLRConfig(ObjectiveConfig):
    backbone: str = Field("resnet50", description="timm model name")
    temperature: float = Field(0.1, gt=0, description="0.1 on ImageNet, 0.5 on small data (appendix B.9)")
    projection_dim: int = Field(128, gt=0, description="width of the projection that is compared")
    projection_hidden: int = Field(2048, gt=0, description="hidden width of the projection head")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image that a crop takes")
    jitter: float = Field(
        1.0, ge=0, description="colour distortion s: 0.8 s brightness, contrast, saturation; 0.2 s hue"
    )
    gray: float = Field(0.2, ge=0, le=1, description="probability of grey")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur; 0 on small images")


class SimCLR(Objective):
    """Backbone, projection head, NT-Xent."""

    name = "simclr"
    Config = SimCLRConfig
    defaults = TrainDefaults(
        optimizer="sgd",
        base_lr=0.3,
        betas=(0.9, 0.999),
        weight_decay=1e-6,
        warmup_epochs=10,
        epochs=100,
        batch_size=4096,
    )

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__(config)
        self.config: SimCLRConfig = config
        self.projector = projector(self.width, config.projection_hidden, config.projection_dim)

    @classmethod
    def view_plan(cls, config: SimCLRConfig) -> ViewPlan:
        s = config.jitter
        crop = CropPlan(
            "image", 2, config.image_size, config.crop_scale, flip_p=config.flip, gray_p=config.gray,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), blur_p=(config.blur,),
        )  # fmt: skip
        return ViewPlan((crop,))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["image"]
        return {"features": self.backbone(self.normalise(views)).unflatten(0, views.shape[:2])}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        both_B2D = features["features"]
        first_BD, second_BD = widen(self.projector(both_B2D.flatten(0, 1))).unflatten(0, both_B2D.shape[:2]).unbind(1)
        return {"loss": nt_xent(first_BD, second_BD, self.config.temperature)}
