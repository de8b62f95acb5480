"""Zero-shot accuracy on a user's data: prompts that fit other data would misjudge a model in silence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from pipelines.pretraining import judge as judging
from pipelines.pretraining.items import MemoryItems
from pipelines.pretraining.judge import ZERO_SHOT_TEMPLATES, Judge
from vfm_ops.pretrain.data import Samples


def test_prompts_say_the_class_and_nothing_about_another_data_set(monkeypatch):
    """A red and a blue picture: an objective that reads colours from prompts must not be told that either is grey."""
    seen: list[str] = []

    def tokenize(text: str, length: int) -> np.ndarray:
        seen.append(text)
        return np.array([("red" in text.split()) - 0.5, ("grey" in text or "black" in text) * 9.0], np.float32)

    objective = SimpleNamespace(
        eval=lambda: None,
        pixel_mean=torch.zeros(1),
        config=SimpleNamespace(text_length=4),
        embed_pair_space=lambda views: torch.nn.functional.normalize(views.float(), dim=-1),
        encode_text=lambda tokens: torch.nn.functional.normalize(tokens.float(), dim=-1),
    )
    monkeypatch.setattr(
        judging, "evaluation_views", lambda _, images: [np.float32([i[0, 0, 0] - 0.5, 0]) for i in images]
    )
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[:2, ..., 0] = 1
    held = MemoryItems(Samples(images, np.array([0, 0, 1, 1]), None))
    metrics = Judge(held, held, ("red", "blue"), tokenize)._image_text(objective)
    assert metrics["zero_shot"] == 1.0
    assert set(seen) == {template.format(name) for name in ("red", "blue") for template in ZERO_SHOT_TEMPLATES}
    assert len(ZERO_SHOT_TEMPLATES) >= 3
