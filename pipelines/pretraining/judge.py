"""How good the features of a run are, by the gate that is fair to its objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.pretraining.items import LakeItems, MemoryItems, captions_of
from vfm_ops.pretrain.evaluate import (
    evaluation_views,
    extract_features,
    knn_accuracy,
    linear_probe,
    retrieval_recall,
    ridge_probe,
    zero_shot_accuracy,
)
from vfm_ops.pretrain.image_text import ImageText
from vfm_ops.pretrain.monitor import effective_rank
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.text import Tokenize

QUICK_ITEMS = 1000  # embedded by an evaluation during the run, on either side
_CHUNK = 256
# Of any picture: a class name of the user's data must make sense in each of them.
ZERO_SHOT_TEMPLATES = ("{}", "a photo of {}", "a photo of a {}", "a picture of the {}", "an image of a {}")


@dataclass(frozen=True)
class Judge:
    """Held-out items against a bank of training items. Everything is embedded in order and nothing is dropped."""

    train: LakeItems | MemoryItems
    held: LakeItems | MemoryItems | None
    classes: tuple[str, ...]
    tokenize: Tokenize | None = None
    most: int = 10_000

    def quick(self, objective: Objective) -> dict[str, float]:
        """effective_rank; knn and probe (ridge, in closed form) where both sides have labels."""
        bank, labels = self._features(objective, self.train, QUICK_ITEMS)
        metrics = {"effective_rank": effective_rank(bank[:2000])}
        if self.held is None or labels is None:
            return metrics
        query, truth = self._features(objective, self.held, QUICK_ITEMS)
        return metrics | self._labelled(objective, bank, labels, query, truth, quick=True)

    def full(self, objective: Objective) -> dict[str, float]:
        """As `quick` on up to `most` items, with a logistic probe; for image-text also zero-shot accuracy by class names and
        recall of captions and of images."""
        bank, labels = self._features(objective, self.train, self.most)
        metrics: dict[str, float] = {"effective_rank": effective_rank(bank[:2000])}
        if self.held is None:
            return metrics
        if labels is not None:
            query, truth = self._features(objective, self.held, self.most)
            metrics |= self._labelled(objective, bank, labels, query, truth, quick=False)
        if isinstance(objective, ImageText) and self.tokenize is not None:
            metrics |= self._image_text(objective)
        return metrics

    def _features(
        self, objective: Objective, items: LakeItems | MemoryItems, most: int
    ) -> tuple[Tensor, Tensor | None]:
        """Features and labels of up to `most` items, spread evenly; those without a label only where none has one."""
        chosen = _spread(items, most)
        parts = [
            extract_features(objective, _images(items, chosen[i : i + _CHUNK])) for i in range(0, len(chosen), _CHUNK)
        ]
        labels = None if items.labels is None else torch.tensor(np.asarray(items.labels)[chosen])
        return torch.cat(parts), labels

    def _labelled(
        self, objective: Objective, bank: Tensor, labels: Tensor, query: Tensor, truth: Tensor | None, quick: bool
    ) -> dict[str, float]:
        if truth is None or int(labels.unique().numel()) < 2:
            return {}
        probe = ridge_probe if quick else linear_probe
        metrics = {"probe": probe(bank, labels, query, truth), "evaluated": float(len(truth))}
        if objective.knn_gate:
            metrics["knn"] = knn_accuracy(bank, labels, query, truth, k=min(20, len(bank)))
        return metrics

    def _image_text(self, objective: Any) -> dict[str, float]:
        """Zero-shot by class names where there are labels; recall at 1 and 5 where held-out items have captions."""
        held, tokenize = self.held, self.tokenize
        if held is None or tokenize is None:
            return {}
        objective.eval()
        chosen = _spread(held, min(self.most, 2000))
        device, length = objective.pixel_mean.device, objective.config.text_length
        images, metrics = [], {}
        for start in range(0, len(chosen), _CHUNK):
            views = np.stack(evaluation_views(objective, _images(held, chosen[start : start + _CHUNK])))
            images.append(objective.embed_pair_space(torch.tensor(views).to(device)).cpu())
        image_ND = torch.cat(images)
        if held.labels is not None and len(self.classes) > 1:
            prompts = [[t.format(name) for t in ZERO_SHOT_TEMPLATES] for name in self.classes]
            class_CPD = torch.stack([_encode(objective, texts, tokenize, length) for texts in prompts])
            metrics["zero_shot"] = zero_shot_accuracy(
                image_ND, class_CPD, torch.tensor(np.asarray(held.labels)[chosen])
            )
        samples = [text for place in chosen for text in captions_of(held, place)[:1]]
        if len(samples) == len(chosen):
            distinct = sorted(set(samples))
            text_MD = _encode(objective, distinct, tokenize, length)
            place = {text: i for i, text in enumerate(distinct)}
            ranked = retrieval_recall(image_ND, text_MD, [{place[s]} for s in samples], ks=(1, 5))
            metrics |= {f"image_to_text_recall_{k}": v for k, v in ranked.items()}
        return metrics


def _spread(items: LakeItems | MemoryItems, most: int) -> np.ndarray:
    """Positions of up to `most` items, evenly spaced; unlabelled ones left out where others have labels."""
    places = np.arange(len(items))
    if items.labels is not None and (np.asarray(items.labels) >= 0).any():
        places = places[np.asarray(items.labels) >= 0]
    return places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]


def _images(items: LakeItems | MemoryItems, places: np.ndarray) -> list[np.ndarray]:
    return [sample["image"] for sample in items.load(places.tolist())]


@torch.no_grad()
def _encode(objective: Any, texts: list[str], tokenize: Tokenize, length: int) -> Tensor:
    tokens = torch.tensor(np.stack([tokenize(t, length) for t in texts])).to(objective.pixel_mean.device)
    return torch.cat([objective.encode_text(part) for part in tokens.split(_CHUNK)]).cpu()
