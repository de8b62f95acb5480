"""What a model sees, for the report: MAE's reconstructions, the class token's attention of DINO and DINOv2."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from pipelines.pretraining.feed import Views
from vfm_ops.pretrain.augment import collate, make_views
from vfm_ops.pretrain.backbones import is_vit
from vfm_ops.pretrain.evaluate import evaluation_views
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.pictures import class_attention

COUNT = 8


def draw(objective: Objective, views: Views) -> dict[str, bytes]:
    """Caption -> PNG of the first few training images; empty where the objective has nothing to show."""
    if not is_vit(objective.evaluation_backbone()) or objective.drawing is None:
        return {}
    samples = views.items.load(range(min(COUNT, len(views.items))))
    objective.eval()
    if objective.drawing == "reconstruction":
        return {"input above, reconstruction below": _reconstructions(objective, views, samples)}
    if objective.evaluation_backbone().num_prefix_tokens == 0:
        return {}
    return {"input above, attention of the class token below": _attention(objective, samples)}


def _reconstructions(objective: Any, views: Views, samples: list[dict[str, Any]]) -> bytes:
    batch = collate([make_views(views.plan, s, views.seed, 0, None) for s in samples])
    tensors = {k: torch.as_tensor(v).to(objective.pixel_mean.device) for k, v in batch.items()}
    drawn = objective.reconstruct(tensors).cpu().numpy()
    inputs = batch["image"][:, 0]
    return _sheet([_rgb(i) for i in inputs], [_rgb(i) for i in drawn])


def _attention(objective: Objective, samples: list[dict[str, Any]]) -> bytes:
    images = np.stack(evaluation_views(objective, [s["image"] for s in samples]))
    pixels = objective.normalise(torch.tensor(images).to(objective.pixel_mean.device))
    maps = class_attention(objective.evaluation_backbone(), pixels).mean(1).cpu().numpy()
    side = images.shape[1]
    below = []
    for share in maps:
        scaled = (255 * (share - share.min()) / max(float(np.ptp(share)), 1e-9)).astype(np.uint8)
        large = cv2.resize(scaled, (side, side), interpolation=cv2.INTER_NEAREST)
        below.append(cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB))
    return _sheet([_rgb(i) for i in images], below)


def _rgb(image_HWC: np.ndarray) -> np.ndarray:
    return np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC


def _sheet(above: list[np.ndarray], below: list[np.ndarray]) -> bytes:
    """Two rows of equal images as one PNG, small ones enlarged to be seen."""
    rows = np.concatenate([np.concatenate(above, axis=1), np.concatenate(below, axis=1)])
    factor = max(1, 96 // above[0].shape[0])
    large = cv2.resize(rows, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".png", cv2.cvtColor(large, cv2.COLOR_RGB2BGR))[1].tobytes()
