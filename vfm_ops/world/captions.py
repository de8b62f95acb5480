"""How a scene is said: noun phrases, relations read off the geometry, sentences, and the synonyms people use."""

from __future__ import annotations

import numpy as np

from vfm_ops.world.scene import Scene
from vfm_ops.world.shapes import Pose
from vfm_ops.world.vocabulary import CUTOUT, with_article

PREFIXES = ("", "a photo of ", "an image of ", "a picture of ", "there is ", "a frame with ", "a video of ", "we see ")
SYNONYMS = {
    "circle": ("disc", "disk"),
    "crescent": ("moon",),
    "capsule": ("pill",),
    "ring": ("hoop",),
    "square": ("box",),
    "cross": ("plus sign",),
    "striped": ("stripy", "banded"),
    "dotted": ("spotted", "polka dot"),
    "checkered": ("chequered", "checked"),
    "purple": ("violet",),
    "cyan": ("turquoise",),
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
    "thing": ("object", "shape"),
}
_SYNONYM_RATE = 0.12


def relation(a: Pose, b: Pose) -> str:
    """Where a is, seen from b: the larger of the two offsets decides."""
    dx, dy = a.cx - b.cx, a.cy - b.cy
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def with_synonyms(text: str, rng: np.random.Generator) -> str:
    """text with some of its words said otherwise."""
    words = text.split()
    for k, word in enumerate(words):
        if word in SYNONYMS and rng.random() < _SYNONYM_RATE:
            words[k] = str(rng.choice(SYNONYMS[word]))
    return " ".join(words)


def free_phrase(scene: Scene, k: int, rng: np.random.Generator) -> str:
    """A free-text phrase that is true of things[k]: any word but the last may be missing, the order varies, synonyms occur."""
    thing = scene.things[k]
    if thing.kind == CUTOUT:
        return "patch"
    size = scene.size_words()[k] if rng.random() < 0.3 else ""
    colour, texture, shape = (bool(v) for v in rng.random(3) < (0.85, 0.8, 0.9))
    if not (colour or shape):
        shape = True
    phrase = thing.kind.phrase(size, int(rng.random() < 0.4), colour, texture, shape)
    return with_synonyms(phrase, rng)


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """One sentence about everything named in the scene: `a small red ring left of a striped blue square`.

    Two things are said with their relation, more as a list. rng: varies the order of words, the opening and the words; None
    gives the canonical sentence. Cutouts are not mentioned.
    """
    sizes = scene.size_words()
    named = [k for k, thing in enumerate(scene.things) if thing.kind != CUTOUT]
    if not named:
        return "an empty scene"
    if rng is not None and len(named) > 1:
        named = [named[k] for k in rng.permutation(len(named))]
    phrases = []
    for k in named:
        size = sizes[k] if rng is None or rng.random() < 0.7 else ""
        order = 0 if rng is None else int(rng.random() < 0.4)
        phrases.append(with_article(scene.things[k].kind.phrase(size, order)))
    if len(phrases) == 2:
        said = f" {relation(scene.things[named[0]].pose, scene.things[named[1]].pose)} "
        text = said.join(phrases)
    else:
        text = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
    return text if rng is None else with_synonyms(str(rng.choice(PREFIXES)) + text, rng)
