"""Watching a run: effective rank and spread of features, and an alarm for the ways in which training collapses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_KEYS = ("features", "student", "query", "image", "tokens", "patches")


@torch.no_grad()
def representative(features: dict[str, Tensor]) -> Tensor | None:
    """One vector for each sample of what an objective's `encode` returned, (B, D) float32; None when there is none."""
    for key in _KEYS:
        if key in features:
            x = features[key].detach().float()
            return x if x.dim() == 2 else x.mean(1) if key == "tokens" else x[:, 0]
    return None


@torch.no_grad()
def effective_rank(x_BD: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy and Vetterli 2007; RankMe).

    Between 1 (a line) and min(B - 1, D); 0 when all features are equal.
    """
    singular = torch.linalg.svdvals((x_BD - x_BD.mean(0)).double())
    if not torch.isfinite(singular).all() or float(singular.sum()) < 1e-12:
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


@torch.no_grad()
def spread(x_BD: Tensor) -> float:
    """Standard deviation of unit features, mean over dimensions, times sqrt(D): 1 on a whole sphere, 0 when all are one
    point (Chen and He 2021, section 4.1)."""
    return float(F.normalize(x_BD, dim=-1).std(0).mean() * x_BD.shape[1] ** 0.5)


@dataclass
class CollapseAlarm:
    """Says, in words, when features or targets have stayed collapsed for `patience` observations in a row.

    uniform: targets and loss sit at ln K. single: all targets choose one prototype. features: they are one point or a line.
    prototypes: K of a self-distillation objective, else 0.
    """

    prototypes: int = 0
    patience: int = 5
    counts: dict[str, int] = field(default_factory=dict)

    def observe(self, logs: dict[str, float]) -> str | None:
        """logs: of one monitored step. Returns the alarm's sentence, or None."""
        signs = self._feature_signs(logs) | self._target_signs(logs)
        for name, message in signs.items():
            self.counts[name] = self.counts.get(name, 0) + 1 if message else 0
            if message and self.counts[name] >= self.patience:
                return message
        return None

    def _feature_signs(self, logs: dict[str, float]) -> dict[str, str]:
        rank, width = logs.get("effective_rank"), logs.get("spread")
        return {
            "point": f"features collapsed to a point (spread {width:.4f})"
            if width is not None and width < 0.01
            else "",
            "line": f"features collapsed (effective rank {rank:.2f})" if rank is not None and rank < 1.5 else "",
        }

    def _target_signs(self, logs: dict[str, float]) -> dict[str, str]:
        if not self.prototypes or "target_entropy" not in logs:
            return {}
        top = math.log(self.prototypes)
        loss = logs.get("dino", logs["loss"])
        uniform = logs["target_entropy"] > 0.995 * top and abs(loss - top) < 0.005 * top
        single = logs["mean_target_entropy"] < 0.02 * top
        return {
            "uniform": f"the loss stays at ln K = {top:.3f}: all targets are uniform" if uniform else "",
            "single": "all targets choose one prototype (mean target entropy near 0)" if single else "",
        }
