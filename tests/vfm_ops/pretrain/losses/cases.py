"""Losses as functions of shared parameters and a batch: what is run on one global batch and on its shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pretrain.losses import dino, ibot, info_nce, koleo, moco, nt_xent, siglip, sinkhorn

GLOBAL_BATCH, WIDTH, PROTOTYPES = 8, 5, 7


def parameters() -> dict[str, Tensor]:
    """Shared weights of a toy two-tower model, float64, equal on every rank."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"image": (6, WIDTH), "text": (6, WIDTH), "head": (WIDTH, PROTOTYPES)}
    weights = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    weights["log_scale"] = torch.tensor(1.3, dtype=torch.float64)
    weights["bias"] = torch.tensor(-1.7, dtype=torch.float64)
    return {name: w.requires_grad_() for name, w in weights.items()}


def global_batch() -> dict[str, Tensor]:
    """Inputs of the whole batch; a rank takes its contiguous share of each along dimension 0."""
    generator = torch.Generator().manual_seed(2)
    batch = {
        name: torch.randn(GLOBAL_BATCH, 6, generator=generator, dtype=torch.float64) for name in ("a", "b", "c", "d")
    }
    batch["teacher"] = torch.randn(GLOBAL_BATCH, 2, PROTOTYPES, generator=generator, dtype=torch.float64)
    # Masked patches per image are uneven, so that shards hold different numbers of them.
    batch["patches"] = torch.randn(GLOBAL_BATCH, 3, 6, generator=generator, dtype=torch.float64)
    batch["mask"] = (
        torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1]]) > 0
    )
    return batch


def _pair(p, b) -> tuple[Tensor, Tensor]:
    return F.normalize(b["a"] @ p["image"], dim=-1), F.normalize(b["b"] @ p["text"], dim=-1)


def _clip(exchange) -> Callable:
    return lambda p, b: info_nce.info_nce(*_pair(p, b), p["log_scale"].exp(), exchange)


def _siglip(exchange, chunk=3) -> Callable:
    return lambda p, b: siglip.siglip_loss(*_pair(p, b), p["log_scale"].exp(), p["bias"], exchange, chunk)


def _simclr(p, b) -> Tensor:
    return nt_xent.nt_xent(b["a"] @ p["image"], b["b"] @ p["image"], 0.5)


def _moco_v3(p, b) -> Tensor:
    first, second = moco.moco_v3_loss(b["a"] @ p["image"], b["c"] @ p["text"], 0.7), None
    second = moco.moco_v3_loss(b["b"] @ p["image"], b["d"] @ p["text"], 0.7)
    return first + second


def _moco_queue(p, b) -> Tensor:
    queue = F.normalize(torch.linspace(-1, 1, 4 * WIDTH, dtype=torch.float64).reshape(4, WIDTH).sin(), dim=-1)
    return moco.moco_queue_loss(b["a"] @ p["image"], b["c"] @ p["text"], queue, 0.2)


def _dino_twice(p, b) -> Tensor:
    """Two steps, so that the second one's targets depend on the centre that all ranks made together."""
    centre = dino.Centre(PROTOTYPES).double()
    student = torch.stack(
        [b["a"] @ p["image"] @ p["head"], b["b"] @ p["image"] @ p["head"], b["c"] @ p["image"] @ p["head"]]
    )
    total = torch.zeros((), dtype=torch.float64)
    for step in range(2):
        teacher = b["teacher"].transpose(0, 1) * (1 + step)
        total = total + dino.dino_loss(student, centre.probabilities(teacher, 0.3), 0.1)
        centre.update(teacher)
    return total


def _masked(p, b) -> tuple[Tensor, Tensor, Tensor]:
    mask = b["mask"]
    weight = (1 / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)[mask].double()
    student = b["patches"][mask] @ p["image"] @ p["head"]
    return student, (b["patches"][mask].sin() @ p["text"].detach() @ p["head"].detach()), weight


def _ibot_sinkhorn(p, b) -> Tensor:
    student, teacher, weight = _masked(p, b)
    return ibot.ibot_loss(student, sinkhorn.sinkhorn(teacher, 0.5), weight, len(b["mask"]), 0.2)


def _ibot_centre(p, b) -> Tensor:
    student, teacher, weight = _masked(p, b)
    centre = dino.Centre(PROTOTYPES).double()
    centre.update(teacher)
    return ibot.ibot_loss(student, centre.probabilities(teacher, 0.5), weight, len(b["mask"]), 0.2)


def _koleo(p, b) -> Tensor:
    return koleo.koleo_loss(b["a"] @ p["image"])


CASES: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]] = {
    "clip_local": _clip("local"),
    "clip_global": _clip("global"),
    "siglip_ring": _siglip("ring"),
    "siglip_ring_one_block": _siglip("ring", 1024),
    "siglip_gather": _siglip("gather"),
    "simclr": _simclr,
    "moco_v3": _moco_v3,
    "moco_queue": _moco_queue,
    "dino_centre": _dino_twice,
    "ibot_sinkhorn": _ibot_sinkhorn,
    "ibot_centre": _ibot_centre,
    "koleo": _koleo,
}
# Modules whose gather carries gradient: detaching it there must be noticed.
GATHERS = {"clip_local": info_nce, "clip_global": info_nce, "siglip_gather": siglip, "simclr": nt_xent, "koleo": koleo}


def value_and_gradients(case: str, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of every parameter (zeros where it plays no part)."""
    weights = parameters()
    loss = CASES[case](weights, batch)
    loss.backward()
    return loss.item(), {n: w.grad if w.grad is not None else torch.zeros_like(w) for n, w in weights.items()}
