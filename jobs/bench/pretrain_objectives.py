"""Every objective at its small size on Fashion-MNIST, against random initialisation and raw pixels."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from vfm_ops.pretrain.image_text import ImageText
from vfm_ops.pretrain.monitor import effective_rank
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.registry import build_objective, small_preset
from vfm_ops.pretrain.text import Tokenize, tokenize_with, train_tokenizer
from vfm_ops.pretrain.train_config import train_config

FEW = 1000  # labels of the few-label kNN
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Benchmark:
    """What every objective is trained and judged on. bank: training images behind kNN and probe."""

    train: Samples
    test: Samples
    tokenize: Tokenize
    bank: int

    @classmethod
    def load(cls, folder: str | Path = FASHION_MNIST, bank: int = 20_000) -> Benchmark:
        """Fashion-MNIST and a tokenizer of its captions. UsageError where the data set is missing."""
        train, test = fashion_mnist(folder, "train"), fashion_mnist(folder, "test")
        tokenizer = train_tokenizer(text for captions in train.captions or () for text in captions)
        return cls(train, test, tokenize_with(tokenizer), bank)

    def pixels(self) -> dict[str, float]:
        """knn (k 20, of the bank), knn_1000 (k 5, of 1,000 labels) and probe of raw pixels, as shares."""
        return self._judge(_flat(self.train.images[: self.bank]), _flat(self.test.images))

    def objective(self, name: str, until_step: int | None = None, seed: int = 0) -> dict[str, Any]:
        """Trains an objective's small preset and judges it on the test images.

        Returns knn, knn_1000 and probe as `pixels` has them, random_probe (before training), accuracy (of the classifier,
        or by class names; None where the objective has neither), effective_rank, steps, cpu_minutes of training and
        images_per_cpu_s: CPU time is the same whatever else the machine does.
        """
        small = small_preset(name)
        settings, training = small.model, small.training
        config = train_config(name, settings, **{**training, "seed": seed})
        torch.manual_seed(seed)
        objective = build_objective(name, **settings)
        before = self._features(objective)
        started = time.process_time()
        history = fit(objective, self.train, config, self.tokenize, until_step=until_step)
        seconds = time.process_time() - started
        bank, test = self._features(objective)
        return {
            **self._judge(bank, test),
            "random_probe": self._judge(*before)["probe"],
            "accuracy": self._accuracy(objective, test),
            "effective_rank": effective_rank(test[:2000]),
            "steps": len(history),
            "cpu_minutes": seconds / 60,
            "images_per_cpu_s": len(history) * config.batch_size / seconds,
        }

    def _features(self, objective: Objective) -> tuple[Tensor, Tensor]:
        return extract_features(objective, self.train.images[: self.bank]), extract_features(
            objective, self.test.images
        )

    def _judge(self, bank_ND: Tensor, test_MD: Tensor) -> dict[str, float]:
        label_N, label_M = torch.tensor(self.train.labels)[: len(bank_ND)], torch.tensor(self.test.labels)
        return {
            "knn": knn_accuracy(bank_ND, label_N, test_MD, label_M, k=20),
            "knn_1000": knn_accuracy(bank_ND[:FEW], label_N[:FEW], test_MD, label_M, k=5),
            "probe": linear_probe(bank_ND, label_N, test_MD, label_M),
        }

    @torch.no_grad()
    def _accuracy(self, objective: Any, test_MD: Tensor) -> float | None:
        label_M = torch.tensor(self.test.labels)
        if hasattr(objective, "classifier"):
            return float((objective.classifier(test_MD).argmax(1) == label_M).double().mean())
        if isinstance(objective, ImageText):
            return class_name_accuracy(objective, self.test, self.tokenize)
        return None


def _flat(images: np.ndarray) -> Tensor:
    return torch.tensor(images.reshape(len(images), -1)).float() / 255


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
