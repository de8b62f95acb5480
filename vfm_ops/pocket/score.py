"""Held-out quality of the pocket models, measured on worlds made on the spot: mAP, mIoU, J&F.

Legend: N detections, M ground-truth boxes, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from vfm_ops.pocket.phrases import WORLD, full_phrase, predict, to_xyxy, truth_table
from vfm_ops.world.scene import Scene, World, image
from vfm_ops.world.vocabulary import held_out_kinds


def box_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """IoU (N, M) of corner boxes."""
    top_left = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    bottom_right = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(-1)
    area_a, area_b = (a_N4[:, 2:] - a_N4[:, :2]).prod(-1), (b_M4[:, 2:] - b_M4[:, :2]).prod(-1)
    return inter / np.maximum(area_a[:, None] + area_b - inter, 1e-9)


def average_precision(scores: np.ndarray, hits: np.ndarray, positives: int) -> float:
    """Area under the interpolated precision-recall curve (all points, as VOC 2010).

    scores (N), hits bool (N): whether each detection is a first match. positives: number of ground truths.
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(hits[order])
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1] if len(true) else np.zeros(0)
    return float((precision * hits[order]).sum() / positives)


def match_detections(boxes_N4: np.ndarray, scores: np.ndarray, truth_M4: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Greedy by score: bool (N), whether each detection takes a yet unmatched ground truth at this IoU."""
    hits = np.zeros(len(scores), bool)
    free = np.ones(len(truth_M4), bool)
    overlap = box_iou(boxes_N4, truth_M4)
    for n in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlap[n], 0)
        if len(candidates) and candidates.max() >= iou:
            free[candidates.argmax()] = False
            hits[n] = True
    return hits


@torch.inference_mode()
def evaluate_detection(model: Any, tokenizer: Any, images: int = 200, seed: int = 20_001) -> dict[str, float]:
    """mAP50 on held-out images of 3-6 things: every image is asked for all 64 held-out kinds by their full phrases.

    Returns the mean AP over kinds that occur.
    """
    was_training = model.training
    model.eval()
    world = World(**{**vars(WORLD), "seed": seed, "split": "heldout", "objects": (3, 6)})
    scenes = [image(world, i) for i in range(images)]
    phrases = [full_phrase(k) for k in held_out_kinds()]
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in phrases]
    positives = np.zeros(len(phrases), int)
    for start in range(0, images, 32):
        chunk = scenes[start : start + 32]
        logits, boxes = predict(model, tokenizer, np.stack([s.rgb for s in chunk]), [p.text for p in phrases])
        corners = (to_xyxy(boxes) * world.width).numpy()
        for scene, p_PQ, boxes_P4, true_KQ in zip(
            chunk, logits.sigmoid().numpy(), corners, truth_table(chunk, phrases), strict=True
        ):
            _collect(scene, p_PQ, boxes_P4, true_KQ, found, positives)
    model.train(was_training)
    aps = [
        average_precision(np.concatenate([s for s, _ in f]), np.concatenate([h for _, h in f]), n)
        for f, n in zip(found, positives, strict=True)
        if n
    ]
    return {"mAP50, 64 held-out kinds, 3-6 things": float(np.mean(aps))}


def _collect(
    scene: Scene, p_PQ: np.ndarray, boxes_P4: np.ndarray, true_KQ: np.ndarray, found: Any, positives: np.ndarray
) -> None:
    """Adds one image's detections (above 0.01, at most 20 a phrase) and ground truths."""
    seen = (scene.boxes_N4[:, 2:] - scene.boxes_N4[:, :2]).min(1) >= 4
    for q in range(p_PQ.shape[1]):
        keep = np.argsort(-p_PQ[:, q])[:20]
        keep = keep[p_PQ[keep, q] > 0.01]
        truth = scene.boxes_N4[seen & true_KQ[:, q]]
        positives[q] += len(truth)
        found[q].append((p_PQ[keep, q], match_detections(boxes_P4[keep], p_PQ[keep, q], truth)))


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Region similarity J of two bool masks; 1 when both are empty."""
    union = np.logical_or(a, b).sum()
    return 1.0 if union == 0 else float(np.logical_and(a, b).sum() / union)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Inner boundary pixels of a bool mask."""
    m = np.pad(mask, 1).astype(np.uint8)
    return (m & ~cv2.erode(m, np.ones((3, 3), np.uint8)).astype(np.uint8) & 1)[1:-1, 1:-1].astype(bool)


def boundary_f(a: np.ndarray, b: np.ndarray, bound: float = 0.008) -> float:
    """Contour accuracy F (DAVIS, Perazzi et al. 2016): boundaries matched within bound * diagonal; 1 when both are empty."""
    if not a.any() or not b.any():
        return 1.0 if not a.any() and not b.any() else 0.0
    radius = int(np.ceil(bound * np.hypot(*a.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    edge_a, edge_b = boundary(a), boundary(b)
    near_a, near_b = (cv2.dilate(e.astype(np.uint8), disc).astype(bool) for e in (edge_a, edge_b))
    precision, recall = (edge_a & near_b).sum() / edge_a.sum(), (edge_b & near_a).sum() / edge_b.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))
