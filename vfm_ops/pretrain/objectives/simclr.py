"""SimCLR: two strongly augmented views of an image agree, against all other images. Chen et al. 2020."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vfm_ops.pretrain.augment import CropPlan, ViewPlan
from vfm_ops.pretrain.heads import projector
from vfm_ops.pretrain.losses.nt_xent import nt_xent
from vfm_ops.pretrain.losses.precision import widen
from vfm_ops.pretrain.objective import Batch, Objective, ObjectiveConfig
from vfm_ops.pretrain.presets import CONTRASTIVE, RESNET, Preset
from vfm_ops.pretrain.recipe import Recipe, official
from vfm_ops.pretrain.registry import register

_RUN = "google-research/simclr run.py"
_UTIL = "google-research/simclr model_util.py"
_DATA = "google-research/simclr data_util.py"

RECIPES = (
    Recipe(
        "a ResNet-50",
        model=official(_RUN, backbone="resnet50", drop_path=0.0, temperature=0.1, projection_dim=128, jitter=1.0)
        | official("google-research/simclr tf2/run.py", projection_layers=3)
        | official(_UTIL, projection_norm=True)
        | official(f"{_UTIL} (the width of the features, 2048 of a ResNet-50)", projection_hidden=2048)
        | official(_DATA, interpolation="bicubic", crop_scale=(0.08, 1.0), gray=0.2, blur=0.5),
        training=official(
            _RUN, optimizer="lars", base_lr=0.3, lr_scaling="linear256", weight_decay=1e-6, sgd_momentum=0.9, warmup_epochs=10,
            epochs=100, clip_grad=None,
        )
        | official(f"{_UTIL} (cosine_decay)", min_lr=0.0)
        | official(f"{_UTIL} (exclude_from_weight_decay)", no_decay="vectors")
        | official("google-research/simclr README.md", batch_size=4096),
        built=official(
            _UTIL, projector="linear-norm-relu-linear-norm-relu-linear-norm", last_norm="a scale, no offset",
        )
        | official("google-research/simclr lars_optimizer.py", trust_coefficient=0.001)
        | official(_DATA, colour_jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8),
        differs=(
            "LARS is timm's: its trust ratio divides by |g| + wd |w| (the LARS paper's form) where the authors' divides by "
            "|g + wd w|, and its momentum is multiplied by the learning rate of the step (as MoCo v3's LARS).",
        ),
    ),
)  # fmt: skip


SMALL = Preset(
    {**RESNET, "temperature": 0.2, "projection_hidden": 256, "projection_dim": 64, "crop_scale": (0.3, 1.0),
     "jitter": 0.5, "gray": 0.0, "blur": 0.0},
    {**CONTRASTIVE, "epochs": 1.5},
)  # fmt: skip


class SimCLRConfig(ObjectiveConfig):
    recipes = RECIPES

    temperature: float = Field(gt=0, description="0.1 on ImageNet, 0.5 on small data (appendix B.9)")
    projection_dim: int = Field(gt=0, description="width of the projection that is compared")
    projection_hidden: int = Field(gt=0, description="hidden width of the projection head")
    projection_layers: int = Field(gt=0, description="linear layers of the projection head; 2 in the paper, 3 in v2")
    projection_norm: bool = Field(description="batch norm, with a scale and no offset, after the head's last layer")
    crop_scale: tuple[float, float] = Field(description="share of the image that a crop takes")
    jitter: float = Field(ge=0, description="colour distortion s: 0.8 s brightness, contrast, saturation; 0.2 s hue")
    gray: float = Field(ge=0, le=1, description="probability of grey")
    blur: float = Field(ge=0, le=1, description="probability of Gaussian blur; 0 on small images")


@register
class SimCLR(Objective):
    """Backbone, projection head, NT-Xent."""

    name = "simclr"
    small = SMALL
    Config = SimCLRConfig

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__(config)
        self.config: SimCLRConfig = config
        self.projector = projector(
            self.width, config.projection_hidden, config.projection_dim, config.projection_layers,
            last_norm=config.projection_norm, last_scale=True,
        )  # fmt: skip

    @classmethod
    def view_plan(cls, config: SimCLRConfig) -> ViewPlan:
        s = config.jitter
        crop = CropPlan(
            "image", 2, config.image_size, config.crop_scale, flip_p=config.flip, gray_p=config.gray,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), blur_p=(config.blur,), interpolation=config.interpolation,
        )  # fmt: skip
        return ViewPlan((crop,))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["image"]
        return {"features": self.backbone(self.normalise(views)).unflatten(0, views.shape[:2])}

    def loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        both_B2D = features["features"]
        first_BD, second_BD = widen(self.projector(both_B2D.flatten(0, 1))).unflatten(0, both_B2D.shape[:2]).unbind(1)
        return {"loss": nt_xent(first_BD, second_BD, self.config.temperature)}
