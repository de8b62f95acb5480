"""`vfm bench gpu`, pretraining: the product's step of DINOv2 on a ViT-B/16 in bfloat16, and the CPU that its views cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from jobs.bench.gpu_measure import Row, Session, Task, count
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.pretrain.augment import ViewPlan, collate, make_views
from vfm_ops.pretrain.registry import build_objective, objective_class, objective_config
from vfm_ops.pretrain.step import Stepper
from vfm_ops.pretrain.train_config import train_config

OURS = "ours, bf16"
REAL = {"backbone": "vit_base_patch16_224"}
QUICK = {
    "backbone": "vit_tiny_patch16_224", "backbone_args": {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "image_size": 16, "patch": 4, "local_size": 8, "local_crops": 2, "prototypes": 32, "head_hidden": 16, "bottleneck": 8,
}  # fmt: skip


def tasks(session: Session) -> Iterator[Task]:
    """Rows of the step at some batch sizes, then of what could be had; and of the views that feed it."""
    steps = f"pretrain, {session.named('DINOv2 with ViT-B/16')}: images/s"
    yield {"what": f"views for {session.named('DINOv2')}: images/s of one core"}, partial(views_per_s, session)
    batches = (4,) if session.quick else (32, 64, 128)
    for batch in batches:
        yield {"what": steps, "way": OURS, "batch": batch}, partial(images_per_s, session, batch, {}, as_it_is)
    middle = batches[len(batches) // 2]
    variants: dict[str, tuple[dict[str, Any], Callable[[Stepper], None]]] = {
        "float32": ({"precision": "fp32"}, as_it_is),
        "bf16, features measured in every step": ({"monitor_every": 1}, as_it_is),
        "bf16, gradient checkpointing": ({"grad_checkpointing": True}, as_it_is),
        "bf16, fused AdamW": ({}, fused_optimizer),
    }
    if session.is_card:
        variants["bf16, blocks by torch.compile"] = ({}, compiled_blocks)
    for name, (settings, change) in variants.items():
        yield {"what": steps, "way": name, "batch": middle}, partial(images_per_s, session, middle, settings, change)


def model(session: Session) -> dict[str, Any]:
    """Settings of the objective; what is not said is the authors' recipe."""
    return QUICK if session.quick else REAL


def view_plan(session: Session) -> ViewPlan:
    """What the objective wants of each picture."""
    return objective_class("dinov2").view_plan(objective_config("dinov2", **model(session)))


def batch_of(session: Session, size: int) -> dict[str, torch.Tensor]:
    """A batch as the feed makes it, pinned where there is a card."""
    plan = view_plan(session)
    images = dead_leaves(2, 24, 32) if session.quick else dead_leaves(4, 480, 640)
    views = [make_views(plan, {"id": i, "image": images[i % len(images)]}, 0, 0) for i in range(min(size, 8))]
    arrays = collate([views[i % len(views)] for i in range(size)])
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return {key: value.pin_memory() for key, value in tensors.items()} if session.is_card else tensors


def stepper_of(session: Session, size: int, settings: dict[str, Any]) -> Stepper:
    """The product's, with random weights. Features are watched in every tenth step, as by default."""
    torch.manual_seed(0)
    config = train_config("dinov2", model(session), **{"precision": "bf16", "batch_size": size, **settings})
    return Stepper(build_objective("dinov2", **model(session)), config, 100_000, str(session.device))


def images_per_s(session: Session, size: int, settings: dict[str, Any], change: Callable[[Stepper], None]) -> Row:
    """Images/s of whole steps: copy, forward, backward, clipping, optimiser, teacher."""
    batch, stepper = batch_of(session, size), stepper_of(session, size, settings)
    work = count(lambda: stepper.step(batch))  # before the change: compiled code shows nothing
    change(stepper)
    note = "recomputed FLOPs are counted" if stepper.config.grad_checkpointing else None
    return session.row(size, session.time(lambda: stepper.step(batch)), work, note)


def as_it_is(stepper: Stepper) -> None:
    """The product's own step."""


def fused_optimizer(stepper: Stepper) -> None:
    """AdamW in one kernel a group."""
    config = stepper.config
    groups = [{k: g[k] for k in ("params", "lr_scale", "wd_scale")} for g in stepper.optimizer.param_groups]
    stepper.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, eps=config.eps, fused=True)


def compiled_blocks(stepper: Stepper) -> None:
    """Each transformer block of student and teacher fused by Inductor."""
    objective: Any = stepper.objective
    for backbone in (objective.backbone, objective.teacher_backbone):
        for block in backbone.blocks:
            block.compile()


def views_per_s(session: Session) -> Row:
    """Images/s that one core makes all views and masks of."""
    plan = view_plan(session)
    image = dead_leaves(1, 24, 32)[0] if session.quick else dead_leaves(1, 480, 640)[0]
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < (0.05 if session.quick else 3.0):
        make_views(plan, {"id": done, "image": image}, 0, 0)
        done += 1
    shown = ", ".join(f"{c.count} of {c.size} px" for c in plan.crops)
    return {"ours": done / (time.perf_counter() - started), "note": shown}
