"""Every objective at its small size on Fashion-MNIST, against random initialisation and raw pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfm_ops.pretrain.data import CAPTION_TEMPLATES, FASHION_CLASSES, Samples, fashion_mnist
from vfm_ops.pretrain.evaluate import (
    evaluation_views,
    extract_features,
    knn_accuracy,
    linear_probe,
    zero_shot_accuracy,
)
from vfm_ops.pretrain.fit import fit
from vfm_ops.pretrain.monitor import effective_rank
from vfm_ops.pretrain.presets import SMALL
from vfm_ops.pretrain.registry import OBJECTIVES, build_objective
from vfm_ops.pretrain.text import Tokenize, tokenize_with, train_tokenizer
from vfm_ops.pretrain.train_config import train_config

FEW = 1000  # labels of the few-label kNN


def bench_pretrain(
    objectives: Sequence[str] = OBJECTIVES,
    data_dir: str | Path = "/usr/share/datasets/fashion-mnist",
    minutes: float = 10.0,
    probe_samples: int = 20000,
    report: Callable[[dict[str, Any]], None] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Trains each objective's small preset for at most `minutes` and evaluates it on the 10,000 test images.

    Returns one row per objective: objective, knn (k 20, of probe_samples), knn_1000 (k 5, 1,000 labels), probe, random_probe,
    pixel_knn_1000, pixel_probe, zero_shot (clip, siglip), effective_rank, steps, of_steps, seconds, images_per_s. Accuracies
    are shares. `report` receives each row as soon as it is there.
    """
    train, test = fashion_mnist(data_dir, "train"), fashion_mnist(data_dir, "test")
    pixels = _evaluate(_flat(train.images[:probe_samples]), _flat(test.images), train, test)
    tokenizer = train_tokenizer(text for captions in train.captions or () for text in captions)
    rows = []
    for name in objectives:
        row = _bench_one(name, train, test, minutes, probe_samples, tokenize_with(tokenizer), seed)
        rows.append(row | {"pixel_knn_1000": pixels["knn_1000"], "pixel_probe": pixels["probe"]})
        if report is not None:
            report(rows[-1])
    return rows


def _bench_one(
    name: str, train: Samples, test: Samples, minutes: float, probe_samples: int, tokenize: Tokenize, seed: int
) -> dict[str, Any]:
    settings, training = SMALL[name]
    config = train_config(name, **{**training, "seed": seed})
    torch.manual_seed(seed)
    objective = build_objective(name, **settings)
    bank = train.images[:probe_samples]
    before = _evaluate(extract_features(objective, bank), extract_features(objective, test.images), train, test)
    started = time.monotonic()
    history = fit(objective, train, config, tokenize, max_seconds=60 * minutes)
    seconds = time.monotonic() - started
    features = extract_features(objective, test.images)
    after = _evaluate(extract_features(objective, bank), features, train, test)
    row = {
        "objective": name, **after, "random_probe": before["probe"], "zero_shot": None,
        "effective_rank": effective_rank(features[:2000]), "steps": len(history), "of_steps": config.total_steps(len(train)),
        "seconds": seconds, "images_per_s": len(history) * config.batch_size / seconds,
    }  # fmt: skip
    if name in ("clip", "siglip"):
        row["zero_shot"] = class_name_accuracy(objective, test, tokenize)
    return row


def _flat(images: np.ndarray) -> Tensor:
    return torch.tensor(images.reshape(len(images), -1)).float() / 255


def _evaluate(bank_ND: Tensor, test_MD: Tensor, train: Samples, test: Samples) -> dict[str, float]:
    label_N, label_M = torch.tensor(train.labels)[: len(bank_ND)], torch.tensor(test.labels)
    return {
        "knn": knn_accuracy(bank_ND, label_N, test_MD, label_M, k=20),
        "knn_1000": knn_accuracy(bank_ND[:FEW], label_N[:FEW], test_MD, label_M, k=5),
        "probe": linear_probe(bank_ND, label_N, test_MD, label_M),
    }


@torch.no_grad()
def class_name_accuracy(objective: Any, test: Samples, tokenize: Tokenize) -> float:
    """Zero-shot accuracy of an image-text objective: the caption templates filled with the class names are the classes."""
    objective.eval()
    length = objective.config.text_length
    prompts = [np.stack([tokenize(t.format(name), length) for t in CAPTION_TEMPLATES]) for name in FASHION_CLASSES]
    class_text_CPD = torch.stack([objective.encode_text(torch.tensor(p)) for p in prompts])
    parts = []
    for start in range(0, len(test), 512):
        views = np.stack(evaluation_views(objective, test.images[start : start + 512]))
        parts.append(objective.embed_pair_space(torch.tensor(views)))
    return zero_shot_accuracy(torch.cat(parts), class_text_CPD, torch.tensor(test.labels))
