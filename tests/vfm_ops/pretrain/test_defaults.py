"""Every default of docs/objectives.md is configured, and is what the built optimiser, head or view does.

A row's value is the authors'; what it is held against is read off the thing that was built, by one function a key. Sizes
are read off networks of full size on the meta device, behaviour off toy ones with the recipe's other defaults.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.vfm_ops.pretrain.tiny import VIT, samples, tokenizer
from vfm_ops.pretrain import step
from vfm_ops.pretrain.augment import make_views
from vfm_ops.pretrain.defaults import Row, deviations, markdown, rows, thresholds
from vfm_ops.pretrain.heads import GlobalBatchNorm1d
from vfm_ops.pretrain.recipe import Recipe
from vfm_ops.pretrain.registry import OBJECTIVES, build_objective, objective_class, objective_config, small_preset
from vfm_ops.pretrain.step import Stepper
from vfm_ops.pretrain.train_config import train_config

ROWS = rows()
SAMPLES = 100  # batches an epoch of full-size runs
_RESNET = {
    "backbone": "resnet18",
    "backbone_args": {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)},
    "image_size": 32,
}
_TEXT = {"vocabulary": 64, "text_length": 8, "text_width": 16, "text_depth": 1, "text_heads": 2, "dim": 24}
_SMALLER: dict[str, dict[str, Any]] = {
    "supervised": {"classes": 3},
    "simclr": {"projection_hidden": 16, "projection_dim": 8},
    "moco": {"dim": 8, "hidden": 16, "queue": 32},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "beit": {"masked": 6, "min_block": 2, "vocabulary": 16, "tokenizer_dim": 4, "tokenizer_hidden": 8},
    "dino": {"prototypes": 32, "head_hidden": 16, "bottleneck": 8},
    "dinov2": {"prototypes": 32, "head_hidden": 16, "bottleneck": 8, "ibot_bottleneck": 8},
    "clip": _TEXT,
    "siglip": _TEXT,
}


class Built:
    """An objective as a recipe has it: its full size without numbers, and a toy of it with them."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name, self.recipe = name, recipe
        self.chosen = {key: recipe.when[key] for key in ("version",) if key in recipe.when}
        if recipe.when.get("network") == "convnet" or recipe.when.get("size") == "large":
            self.chosen["backbone"] = recipe.model["backbone"].value
        self.config = objective_config(name, **self.chosen)
        self.training = train_config(name, self.chosen)
        self.plan = objective_class(name).view_plan(self.config)
        self.crop = self.plan.crops[0]

    @cached_property
    def full(self) -> Any:
        with torch.device("meta"):
            return build_objective(self.name, **self.chosen)

    @cached_property
    def stepper(self) -> Stepper:
        return Stepper(self.full, self.training, SAMPLES * self.training.batch_size, "meta")

    @cached_property
    def is_vit(self) -> bool:
        return "vit" in self.config.backbone or "beit" in self.config.backbone

    def toy(self, **settings: Any) -> Any:
        torch.manual_seed(0)
        small: dict[str, Any] = _RESNET
        if self.is_vit:
            small = {"backbone": self.config.backbone, "backbone_args": VIT, "image_size": 16}
            if "siglip" in self.config.backbone:
                small["backbone_args"] = {**VIT, "num_heads": 2}
        if self.name in ("dino", "dinov2"):
            small = {**small, "local_size": 8 if self.is_vit else 32}
        return build_objective(self.name, **{**self.chosen, **small, **_SMALLER[self.name], **settings})

    def batch(self, toy: Any, count: int = 8) -> dict[str, torch.Tensor]:
        plan = toy.view_plan(toy.config)
        made = [make_views(plan, samples()[i], 0, 0, tokenizer()) for i in range(count)]
        return {key: torch.as_tensor(np.stack([m[key] for m in made])) for key in made[0]}

    def said(self, monkeypatch: pytest.MonkeyPatch, function: str, name: str) -> Any:
        """The argument `name` of one of the objective module's functions when a toy computes its loss."""
        import inspect

        module = importlib.import_module(f"vfm_ops.pretrain.objectives.{self.name}")
        target, heard = getattr(module, function), {}

        def spy(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(target).bind(*args, **kwargs)
            bound.apply_defaults()
            heard.update(bound.arguments)
            return target(*args, **kwargs)

        monkeypatch.setattr(module, function, spy)
        toy = self.toy(**({"tokenizer_share": 0.0} if self.name == "beit" else {})).train()
        toy.prepare(10, 10, 8)
        toy.set_step(0)
        toy(self.batch(toy))
        return heard[name]


@cache
def built(name: str, recipe_name: str) -> Built:
    return Built(name, next(r for r in objective_class(name).Config.recipes if r.name == recipe_name))


Read = Callable[[Built, pytest.MonkeyPatch], Any]


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def kinds(head: nn.Module) -> str:
    if isinstance(head, nn.Identity):
        return "none"
    return "-".join("norm" if isinstance(m, GlobalBatchNorm1d) else type(m).__name__.lower() for m in head)


def peak(b: Built, batch: int) -> float:
    config = b.training.model_copy(update={"batch_size": batch})
    schedule = config.lr_schedule(SAMPLES * batch)
    return max(schedule(i) for i in range(config.total_steps(SAMPLES * batch)))


def lr_rule(b: Built, m: Any) -> str:
    ratio, at_256 = peak(b, 512) / peak(b, 128), peak(b, 256) / b.training.base_lr
    rules = {(4, 1): "linear256", (4, 0.5): "linear512", (2, 0.5): "sqrt1024", (1, 1): "none"}
    return rules[round(ratio), round(at_256, 6)]


def what_decays_not(b: Built, m: Any) -> str:
    """Told from the groups alone, by one parameter of each sort."""
    decays = {n: bool(g["wd_scale"]) for g in b.stepper.optimizer.param_groups for n in g["names"]}
    of = lambda *ends: [on for n, on in decays.items() if n.endswith(ends)]  # noqa: E731
    if any(of("norm1.bias", "bn1.bias")):
        return "nothing"
    if b.name == "siglip":
        assert not any(of("embedding.weight", "latent", "pos_embed"))
        assert all(of("fc1.weight", "qkv.weight", "patch_embed.proj.weight"))
        return "all_but_layers"
    if not b.is_vit:
        return "vectors"
    places, mask = of("pos_embed", "cls_token"), of("mask_token")
    if all(places) and all(mask):
        return "vectors"
    assert not any(places)
    return "vectors_and_positions" if all(mask) else "vectors_and_tokens"


def warmup(b: Built, m: Any) -> int:
    lr, top = b.stepper.lr, b.training.learning_rate()
    return next(i for i in range(b.stepper.total_steps) if lr(i) >= top * (1 - 1e-9))


def clip_limit(b: Built, m: Any) -> float | None:
    """Of huge gradients, the largest norm that is left of what is clipped together."""
    toy = b.toy()
    stepper = Stepper(toy, b.training.model_copy(update={"batch_size": 8}), 80)
    for p in toy.parameters():
        p.grad = torch.full_like(p, 1e3) if p.requires_grad else None
    m.setattr(stepper.optimizer, "step", lambda: None)
    m.setattr(toy, "after_step", lambda: None)
    m.setattr(toy, "after_backward", lambda: None)
    stepper._update()
    if b.training.clip_grad is None:
        assert all(float(p.grad.max()) == 1e3 for p in toy.parameters() if p.grad is not None)
        return None
    groups = step.clip_groups(toy, b.training.clip_by)
    norms = [math.sqrt(sum(float(p.grad.square().sum()) for p in g if p.grad is not None)) for g in groups]
    return round(max(norms), 3)


def clipped_together(b: Built, m: Any) -> str:
    toy = b.toy()
    groups = [{id(p) for p in g} for g in step.clip_groups(toy, b.training.clip_by)]
    if len(groups) == 1:
        return "all"
    if all(len(g) == 1 for g in groups):
        return "parameter"
    learning = {id(p) for p in toy.parameters() if p.requires_grad}
    heads = [toy.head] + ([toy.patch_head] if toy.config.separate_ibot_head else [])
    own = [{id(p) for p in head.parameters()} for head in heads]
    assert [g for g in groups if g & learning] == [learning - set().union(*own), *own]
    return "module"


def layer_rates(b: Built) -> dict[str, float]:
    return {n: g["lr_scale"] for g in b.stepper.optimizer.param_groups for n in g["names"]}


def drop_rates(b: Built) -> list[float]:
    blocks = getattr(b.full.backbone, "blocks", ())
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]


def same_network(b: Built, m: Any) -> str:
    import timm

    with torch.device("meta"):
        other = timm.create_model(b.config.backbone, num_classes=0)
    shape = lambda n: (type(n), n.num_features, len(getattr(n, "blocks", ())), len(list(n.modules())) // 60)  # noqa: E731
    assert shape(other)[:3] == shape(b.full.backbone)[:3]
    return b.config.backbone


def sine_table(positions: torch.Tensor, side: int) -> bool:
    """Whether row (y, x) holds sin and cos of x w and y w with w = 10000 ** -(i / (D / 4)), class token 0; in float64."""
    table = positions.double().reshape(-1, positions.shape[-1])
    rest = table[-side * side :]
    quarter = table.shape[1] // 4
    for index in range(side * side):
        y, x = divmod(index, side)
        angles = [10000 ** -(i / quarter) for i in range(quarter)]
        want = [f(v * w) for v in (x, y) for f in (math.sin, math.cos) for w in angles]
        if not torch.allclose(rest[index], torch.tensor(want, dtype=torch.float64), atol=1e-6):
            return False
    return bool((table[: -side * side] == 0).all())


def positions(b: Built, m: Any) -> str:
    table = b.toy().backbone.pos_embed
    assert not table.requires_grad
    assert sine_table(table.detach(), 4)
    return "fixed sine-cosine"


def initial_weights(b: Built, m: Any) -> str:
    qkv = b.toy().backbone.blocks[0].attn.qkv.weight
    whole, third = math.sqrt(6 / (24 + 72)), math.sqrt(6 / (24 + 24))
    largest = float(qkv.detach().abs().max())
    if largest > whole:
        assert 0.95 * third < largest <= third
        return "Xavier uniform, query, key and value apart"
    assert 0.95 * whole < largest
    return "Xavier uniform"


def last_norm(b: Built, m: Any) -> str:
    final = b.full.projector[-1]
    assert final.bias is None
    return "no scale, no offset" if final.weight is None else "a scale, no offset"


def momentum_at(b: Built, m: pytest.MonkeyPatch, step_index: int) -> float:
    heard: list[float] = []
    module = importlib.import_module(f"vfm_ops.pretrain.objectives.{'dino' if b.name == 'dinov2' else b.name}")
    toy = b.toy()
    m.setattr(module, "ema_update", lambda teacher, student, momentum: heard.append(momentum))
    toy.prepare(100, 10, 8)
    toy.set_step(step_index)
    toy.after_step()
    return round(heard[0], 9)


def key_momentum(b: Built, m: Any) -> str:
    start, end = momentum_at(b, m, 0), momentum_at(b, m, 100)
    return "constant" if start == end else "rises to 1 by a cosine" if end == 1 else "?"


def temperature_epochs(b: Built, m: Any) -> float:
    toy = b.toy()
    toy.prepare(10_000, 10, 8)
    for at in range(10_000):
        toy.set_step(at)
        if toy.teacher_temperature() == b.config.teacher_temperature:
            return at / 10
    raise AssertionError("never reached")


def teacher_temperature(b: Built, m: Any, at: int) -> float:
    toy = b.toy()
    toy.prepare(10_000, 10, 8)
    toy.set_step(at)
    return toy.teacher_temperature()


def frozen_epochs(b: Built, m: Any) -> float:
    toy = b.toy()
    toy.prepare(100, 10, 8)
    for at in range(100):
        toy.set_step(at)
        toy.head.last_layer.weight.grad = torch.ones_like(toy.head.last_layer.weight)
        toy.after_backward()
        if toy.head.last_layer.weight.grad is not None:
            return at / 10
    raise AssertionError("never let go")


def weight_of(part: str) -> Read:
    """Of dinov2's loss: what one unit more of a part adds."""

    def read(b: Built, m: pytest.MonkeyPatch) -> float:
        module = importlib.import_module("vfm_ops.pretrain.objectives.dinov2")
        parts = {"dino": "dino_loss", "ibot": "ibot_loss", "koleo": "koleo_loss"}
        toy = b.toy().eval()
        batch = b.batch(toy)
        for function in parts.values():
            m.setattr(module, function, lambda *a, **k: torch.zeros((), requires_grad=True))
        m.setattr(module, parts[part], lambda *a, **k: torch.ones((), requires_grad=True))
        return round(toy(batch)["loss"].item() / (2 if part == "koleo" else 1), 6)  # KoLeo is that of two crops

    return read


def centring(b: Built, m: Any) -> bool:
    toy = b.toy(**({"target": "centring"} if b.name == "dinov2" else {})).train()
    toy.prepare(10, 10, 8)
    toy(b.batch(toy))
    return bool(toy.centre.centre_1K.abs().sum() > 0)


def sinkhorn_shape(b: Built, m: pytest.MonkeyPatch) -> str:
    module = importlib.import_module("vfm_ops.pretrain.objectives.dinov2")
    seen: list[tuple[int, ...]] = []
    real = module.sinkhorn
    m.setattr(module, "sinkhorn", lambda rows, t, *a: seen.append(tuple(rows.shape)) or real(rows, t, *a))
    toy = b.toy(target="sinkhorn").eval()
    toy(b.batch(toy))
    assert seen[0] == (16, 32)  # eight images, two crops each, as one batch
    assert module.sinkhorn.__kwdefaults__ is None
    assert importlib.import_module("inspect").signature(real).parameters["iterations"].default == 3
    return "over the class tokens of both crops together, 3 iterations"


def clamped_scale(b: Built, m: Any) -> str:
    toy = b.toy()
    for wild, tame in ((9.0, math.log(100)), (-3.0, 0.0)):
        toy.logit_scale.data.fill_(wild)
        toy.after_step()
        assert toy.logit_scale.item() == pytest.approx(tame)
    return "clamped to [0, ln 100]"


def head_form(b: Built, m: Any) -> str:
    toy = b.toy()
    assert [type(layer).__name__ for layer in toy.head.mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    with torch.no_grad():
        toy.head.last_layer.weight.mul_(100)
        assert toy.head(100 * torch.randn(64, toy.width)).abs().max() <= 1 + 1e-5
    return "linear-gelu-linear-gelu-linear, unit bottleneck, unit prototypes"


def tokenizer_share(b: Built, m: Any) -> float:
    toy = b.toy()
    toy.prepare(1000, 10, 8)
    count = 0
    for at in range(1000):
        toy.set_step(at)
        count += toy.learns_tokenizer
    return count / 1000


def of_config(key: str) -> Read:
    """For what the authors' code has no counterpart of, or what only other keys read."""
    return lambda b, m: getattr(b.config, key)


def of_crop(field: str, index: int = 0) -> Read:
    return lambda b, m: getattr(b.plan.crops[index], field)


MODEL: dict[str, Read] = {
    "backbone": same_network,
    "drop_path": lambda b, m: round(max(drop_rates(b), default=0.0), 9),
    "interpolation": lambda b, m: {crop.interpolation for crop in b.plan.crops}.pop(),
    "crop_scale": of_crop("scale"),
    "global_scale": of_crop("scale"),
    "local_scale": of_crop("scale", 1),
    "local_crops": of_crop("count", 1),
    "local_size": of_crop("size", 1),
    "local_blur": lambda b, m: b.plan.crops[1].blur_p[0],
    "jitter": lambda b, m: round(b.crop.jitter[0] / (0.8 if b.name == "simclr" else 1), 9),
    "saturation": lambda b, m: b.crop.jitter[2] / b.crop.jitter[0],
    "jitter_probability": of_crop("jitter_p"),
    "gray": of_crop("gray_p"),
    "blur": lambda b, m: b.crop.blur_p[0] if b.name == "simclr" else b.crop.blur_p,
    "solarize": of_crop("solarize_p"),
    "flip": of_crop("flip_p"),
    "rand_augment": of_crop("rand_augment"),
    "erase": of_crop("erase_p"),
    "smoothing": lambda b, m: b.said(m, "soft_cross_entropy", "smoothing"),
    "mixup": lambda b, m: b.said(m, "mix", "mixup") if b.is_vit else b.config.mixup,
    "cutmix": lambda b, m: b.said(m, "mix", "cutmix") if b.is_vit else b.config.cutmix,
    "projection_dim": lambda b, m: linears(b.full.projector)[-1].out_features,
    "projection_hidden": lambda b, m: linears(b.full.projector)[0].out_features,
    "projection_layers": lambda b, m: len(linears(b.full.projector)),
    "projection_norm": lambda b, m: isinstance(b.full.projector[-1], GlobalBatchNorm1d),
    "projector_layers": lambda b, m: len(linears(b.full.projector)),
    "predictor_norm": lambda b, m: kinds(b.full.predictor).endswith("linear-norm"),
    "version": lambda b, m: b.config.version,
    "dim": lambda b, m: (
        linears(b.full.projector if b.name == "moco" else b.full.projection)[-1].out_features
        if not isinstance(getattr(b.full, "projection", None), nn.Identity)
        else b.full.width
    ),
    "hidden": lambda b, m: linears(b.full.projector)[0].out_features,
    "queue": lambda b, m: len(b.full.queue_KD) if b.config.version == "v2" else b.config.queue,
    "freeze_patch_embed": lambda b, m: b.is_vit and not b.toy().backbone.patch_embed.proj.weight.requires_grad,
    "fixed_positions": lambda b, m: b.is_vit and not b.toy().backbone.pos_embed.requires_grad,
    "momentum": lambda b, m: momentum_at(b, m, 0),
    "patch": lambda b, m: b.full.backbone.patch_embed.patch_size[0],
    "mask_ratio": lambda b, m: b.plan.masks[0].ratio if b.name == "mae" else b.plan.masks[0].ratio_range,
    "mask_probability": lambda b, m: b.plan.masks[0].probability,
    "masked": lambda b, m: b.plan.masks[0].count,
    "min_block": lambda b, m: b.plan.masks[0].min_block,
    "decoder_dim": lambda b, m: b.full.decoder.embed.out_features,
    "decoder_depth": lambda b, m: len(b.full.decoder.blocks),
    "decoder_heads": lambda b, m: b.full.decoder.blocks[0].attn.num_heads,
    "norm_pix_loss": lambda b, m: b.said(m, "mae_loss", "norm_pix_loss"),
    "tokenizer_dim": lambda b, m: b.full.tokenizer.codebook_VD.shape[1],
    "tokenizer_hidden": lambda b, m: b.full.tokenizer.encoder[0].out_channels,
    "tokenizer_share": tokenizer_share,
    "vocabulary": lambda b, m: b.full.classifier.out_features if b.name == "beit" else b.full.text.config.vocab_size,
    "shared_position_bias": lambda b, m: (
        b.full.backbone.rel_pos_bias is not None and b.full.backbone.blocks[0].attn.relative_position_bias_table is None
    ),
    "layer_scale": lambda b, m: round(
        float((b.toy().backbone.blocks[0].gamma_1 if b.name == "beit" else b.toy().backbone.blocks[0].ls1.gamma).max()),
        9,
    ),
    "prototypes": lambda b, m: b.full.head.last_layer.out_features,
    "head_hidden": lambda b, m: b.full.head.mlp[0].out_features,
    "bottleneck": lambda b, m: b.full.head.last_layer.in_features,
    "ibot_bottleneck": lambda b, m: (
        b.full.patch_head.last_layer.in_features if b.config.separate_ibot_head else b.config.ibot_bottleneck
    ),
    "separate_ibot_head": lambda b, m: hasattr(b.full, "patch_head"),
    "student_temperature": lambda b, m: b.said(m, "dino_loss", "temperature"),
    "teacher_temperature": lambda b, m: teacher_temperature(b, m, 9_999),
    "teacher_temperature_start": lambda b, m: teacher_temperature(b, m, 0),
    "teacher_temperature_epochs": temperature_epochs,
    "freeze_last_layer_epochs": frozen_epochs,
    "centring": centring,
    "centre_momentum": lambda b, m: b.full.centre.momentum,
    "target": of_config("target"),
    "dino_weight": weight_of("dino"),
    "ibot_weight": weight_of("ibot"),
    "koleo_weight": weight_of("koleo"),
    "text_length": lambda b, m: b.plan.tokens,
    "text_width": lambda b, m: b.full.text.config.hidden_size,
    "text_depth": lambda b, m: b.full.text.config.num_hidden_layers,
    "text_heads": lambda b, m: b.full.text.config.num_attention_heads,
    "exchange": lambda b, m: b.said(m, "info_nce" if b.name == "clip" else "siglip_loss", "exchange"),
    "chunk": lambda b, m: b.said(m, "siglip_loss", "chunk"),
    "scale": lambda b, m: round(math.exp(b.toy().logit_scale.item()), 4),
    "bias": lambda b, m: b.toy().logit_bias.item(),
    "mean": lambda b, m: tuple(b.toy().pixel_mean.flatten().tolist()),
    "std": lambda b, m: tuple(b.toy().pixel_std.flatten().tolist()),
    "temperature": lambda b, m: {
        "simclr": lambda: b.said(m, "nt_xent", "temperature"),
        "moco": lambda: b.said(m, "moco_queue_loss" if b.config.version == "v2" else "moco_v3_loss", "temperature"),
        "clip": lambda: round(math.exp(-b.toy().logit_scale.item()), 6),
    }[b.name](),
}
TRAINING: dict[str, Read] = {
    "optimizer": lambda b, m: type(b.stepper.optimizer).__name__.lower(),
    "base_lr": lambda b, m: round(peak(b, 1024) / {"linear256": 4, "linear512": 2}.get(b.training.lr_scaling, 1), 12),
    "lr_scaling": lr_rule,
    "min_lr": lambda b, m: b.stepper.lr(b.stepper.total_steps),
    "betas": lambda b, m: b.stepper.optimizer.param_groups[0]["betas"],
    "eps": lambda b, m: b.stepper.optimizer.param_groups[0]["eps"],
    "sgd_momentum": lambda b, m: b.stepper.optimizer.param_groups[0]["momentum"],
    "weight_decay": lambda b, m: b.stepper.wd(0),
    "weight_decay_end": lambda b, m: b.stepper.wd(b.stepper.total_steps),
    "no_decay": what_decays_not,
    "warmup_epochs": lambda b, m: warmup(b, m) / SAMPLES,
    "warmup_steps": warmup,
    "epochs": lambda b, m: b.stepper.total_steps / SAMPLES,
    "batch_size": lambda b, m: SAMPLES * b.training.batch_size * b.training.epochs / b.stepper.total_steps,
    "clip_grad": clip_limit,
    "clip_by": clipped_together,
    "layer_decay": lambda b, m: round(
        layer_rates(b)["backbone.blocks.0.mlp.fc1.weight"] / layer_rates(b)["backbone.blocks.1.mlp.fc1.weight"], 9
    ),
    "patch_embed_lr_scale": lambda b, m: round(
        layer_rates(b)["backbone.patch_embed.proj.weight"] / layer_rates(b)["backbone.pos_embed"], 9
    ),
}
BUILT: dict[str, Read] = {
    "projector": lambda b, m: kinds(b.full.projector),
    "predictor": lambda b, m: kinds(b.full.predictor),
    "last_norm": last_norm,
    "trust_coefficient": lambda b, m: b.stepper.optimizer.param_groups[0]["trust_coeff"],
    "colour_jitter": lambda b, m: b.crop.jitter,
    "jitter_probability": of_crop("jitter_p"),
    "positions": positions,
    "decoder_positions": lambda b, m: "fixed sine-cosine" if sine_table(b.toy().decoder.positions[0], 4) else "?",
    "weights": initial_weights,
    "key_momentum": key_momentum,
    "teacher_momentum": key_momentum,
    "drop_path_schedule": lambda b, m: (
        "the same at every block"
        if len(set(drop_rates(b))) == 1
        else "linear from 0"
        if np.allclose(drop_rates(b), np.linspace(0, b.config.drop_path, len(drop_rates(b))))
        else "?"
    ),
    "mask_token_layer": lambda b, m: {
        len(b.full.backbone.blocks) + 1 - round(math.log(g["lr_scale"], 0.5))
        for g in b.full.param_groups(0.5)
        if "mask_token" in g["names"]
    }.pop(),
    "head": head_form,
    "sinkhorn": sinkhorn_shape,
    "logit_scale": clamped_scale,
}
READERS = {"model": MODEL, "training": TRAINING, "built": BUILT}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_default_is_the_authors_and_what_is_built_has_it(row: Row, monkeypatch):
    b = built(row.objective, row.recipe.name)
    if row.kind != "built":
        configured = getattr(b.config if row.kind == "model" else b.training, row.key)
        assert configured == row.value
    got = READERS[row.kind][row.key](b, monkeypatch)
    assert got == (pytest.approx(row.value) if isinstance(row.value, float) else row.value)


def test_each_recipe_cites_every_key_that_the_authors_decide():
    """A key that a recipe leaves out would silently be ours."""
    every = {
        "optimizer",
        "base_lr",
        "lr_scaling",
        "min_lr",
        "weight_decay",
        "no_decay",
        "epochs",
        "batch_size",
        "clip_grad",
    }
    for name in OBJECTIVES:
        for recipe in objective_class(name).Config.recipes:
            cited = set(recipe.training)
            assert every <= cited, recipe.name
            assert {"warmup_epochs", "warmup_steps"} & cited, recipe.name
            assert ("betas" if recipe.training["optimizer"].value == "adamw" else "sgd_momentum") in cited, recipe.name
            assert "clip_by" in cited or recipe.training["clip_grad"].value is None, recipe.name
            unset = [k for k, f in objective_class(name).Config.model_fields.items() if f.is_required()]
            assert set(unset) <= set(recipe.model), recipe.name


def test_issue_rows_hold_word_for_word():
    """The values that were wrong once, typed again from the authors' files."""
    v2, v3 = objective_config("moco", version="v2"), objective_config("moco", version="v3")
    assert (v2.temperature, v2.momentum, v2.dim, v2.hidden) == (0.2, 0.999, 128, 2048)
    assert train_config("moco", {"version": "v2"}).optimizer == "sgd"
    assert v3.temperature == 0.2
    assert objective_config("moco", backbone="resnet50").temperature == 1.0
    assert train_config("simclr").optimizer == "lars"
    drops = {name: objective_config(name).drop_path for name in ("dino", "dinov2", "beit")}
    assert drops == {"dino": 0.1, "dinov2": 0.3, "beit": 0.1}
    assert train_config("beit").betas == (0.9, 0.999)
    assert [train_config(name).min_lr for name in ("dino", "dinov2", "beit")] == [1e-6, 1e-6, 1e-5]
    ends = [train_config("dinov2", {"version": v}).weight_decay_end for v in ("short", "long")]
    assert ends == [0.4, 0.2]


def test_page_of_defaults_is_up_to_date():
    page = Path(__file__).parents[3] / "docs" / "objectives.md"
    assert page.read_text() == markdown(), "run: python -m vfm_ops.pretrain.defaults docs/objectives.md"


def test_every_deviation_of_a_small_preset_says_why():
    found = deviations()
    assert {d.objective for d in found} == set(OBJECTIVES)
    assert all(d.reason for d in found)
    for name in OBJECTIVES:
        small = small_preset(name)
        objective_config(name, **small.model)
        train_config(name, small.model, **small.training)


def test_a_backbone_chooses_its_patch_and_the_local_crops_that_fit_it():
    config = objective_config("dinov2", backbone="vit_small_patch14_dinov2")
    assert (config.patch, config.local_size) == (14, 98)
    assert objective_config("mae", backbone="vit_huge_patch14_224").patch == 14
    assert objective_config("mae", backbone_args={"patch_size": 8}).patch == 8
    assert objective_config("dinov2", patch=7, local_size=14).local_size == 14


def test_warm_up_in_epochs_replaces_the_recipes_steps():
    assert train_config("clip").warmup_steps == 2000
    assert train_config("clip", warmup_epochs=1).warmup_steps is None


def test_detectors_least_scores_are_those_of_the_library_that_runs_them():
    """transformers ports four of the five families with their authors' defaults."""
    import inspect

    import transformers

    processors = {
        "grounding-dino": "GroundingDinoProcessor", "owlvit": "OwlViTProcessor", "owlv2": "Owlv2Processor",
        "omdet-turbo": "OmDetTurboProcessor",
    }  # fmt: skip
    ours = {family: score for family, score, source in thresholds() if source}
    for family, name in processors.items():
        method = getattr(transformers, name).post_process_grounded_object_detection
        assert ours[family] == inspect.signature(method).parameters["threshold"].default, family
    assert ours["yolo-world"] == 0.05
