"""What pocket-owl is asked: free-text phrases about things of the world, and its answer to them for one batch.

Training (`owl`) and scoring (`score`) both build on this. Legend: B images, P patches, Q phrases, K things, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_ops.pocket.train import to_pixels
from vfm_ops.world.captions import with_synonyms
from vfm_ops.world.scene import Scene, World
from vfm_ops.world.vocabulary import Kind, with_article

SIZE, CONTEXT = 144, 16
WORLD = World(height=SIZE, width=SIZE, objects=(1, 6), radius=(0.085, 0.24), overlap=0.2)


@dataclass(frozen=True)
class Phrase:
    """A free-text description and what it asserts; an empty word asserts nothing."""

    text: str
    size: str = ""
    colour: str = ""
    texture: str = ""
    shape: str = ""

    def is_true_of(self, kind: Kind, size: str) -> bool:
        """Whether a thing of this kind and size word satisfies everything asserted."""
        pairs = ((self.size, size), (self.colour, kind.colour), (self.texture, kind.texture), (self.shape, kind.shape))
        return all(asserted in ("", actual) for asserted, actual in pairs)


def full_phrase(kind: Kind) -> Phrase:
    """The phrase that says colour, texture (plain too) and shape: what held-out kinds are asked for by."""
    text = kind.phrase() if kind.texture != "plain" else f"plain {kind.phrase()}"
    return Phrase(text, "", kind.colour, kind.texture, kind.shape)


def random_phrase(rng: np.random.Generator, kind: Kind, size: str) -> Phrase:
    """A phrase true of this thing: each word may be missing, order and wording vary, sometimes a whole sentence."""
    size = size if rng.random() < 0.25 else ""
    has_colour, has_texture, has_shape = rng.random(3) < (0.85, 0.75, 0.9)
    has_shape = has_shape or not has_colour
    if kind.texture == "plain":
        has_texture = has_texture and rng.random() < 0.6
    words = [kind.colour if has_colour else "", kind.texture if has_texture else ""]
    if rng.random() < 0.4:
        words.reverse()
    noun = kind.shape if has_shape else "thing"
    text = with_synonyms(" ".join(w for w in (size, *words, noun) if w), rng)
    if rng.random() < 0.3:
        text = str(rng.choice(("", "a photo of "))) + with_article(text)
    return Phrase(
        text,
        size,
        kind.colour if has_colour else "",
        kind.texture if has_texture else "",
        kind.shape if has_shape else "",
    )


def truth_table(scenes: list[Scene], phrases: list[Phrase]) -> list[np.ndarray]:
    """Per scene a bool (K, Q): which phrase is true of which thing."""
    tables = []
    for scene in scenes:
        things = list(zip(scene.things, scene.size_words(), strict=True))
        tables.append(np.array([[p.is_true_of(t.kind, size) for p in phrases] for t, size in things], bool))
    return tables


def to_xyxy(cxcywh: Tensor) -> Tensor:
    """Centres and sizes (..., 4) to corners."""
    return torch.cat([cxcywh[..., :2] - cxcywh[..., 2:] / 2, cxcywh[..., :2] + cxcywh[..., 2:] / 2], -1)


def predict(model: Any, tokenizer: Any, rgb_BHWC: np.ndarray, texts: list[str]) -> tuple[Tensor, Tensor]:
    """logits float32 (B, P, Q) of every phrase for every patch, boxes (B, P, 4) cxcywh in [0, 1]."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    pooled = model.owlvit.text_model(**tokens).pooler_output
    text_QD = F.normalize(model.owlvit.text_projection(pooled), dim=-1)
    feature_map, _ = model.image_embedder(to_pixels(rgb_BHWC))
    features_BPD = feature_map.flatten(1, 2)
    logits, _ = model.class_predictor(features_BPD, text_QD.expand(len(rgb_BHWC), -1, -1))
    boxes = model.box_head(features_BPD).float() + model.box_bias
    return logits.float(), boxes.sigmoid()
