"""The words of the world: shapes, colours, textures and sizes, how they are said, and which combinations are held out.

A kind is one colour x texture x shape. 64 of the 400 kinds never appear in the training split, though each of their words
does: naming one of them right takes composition, not memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross", "crescent", "arrow", "capsule")
COLOURS = {
    "red": (220, 30, 35),
    "orange": (245, 130, 20),
    "yellow": (245, 225, 40),
    "green": (40, 160, 60),
    "cyan": (50, 215, 225),
    "blue": (30, 70, 215),
    "purple": (125, 45, 175),
    "pink": (250, 130, 185),
    "white": (245, 245, 245),
    "black": (22, 22, 26),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
# Radius over the shorter image side, below and above which a thing is called small and large.
SMALL, LARGE = 0.12, 0.24
HELD_OUT_KINDS = 64
_HOLD_OUT_SEED = 20240229


@dataclass(frozen=True, order=True)
class Kind:
    """What a thing looks like, in words of COLOURS, TEXTURES and SHAPES; CUTOUT is a nameless photographic blob."""

    colour: str
    texture: str
    shape: str

    def phrase(
        self, size: str = "", order: int = 0, colour: bool = True, texture: bool = True, shape: bool = True
    ) -> str:
        """Noun phrase without article, such as `small red striped ring`; words left out make it less specific.

        order: 1 puts the texture before the colour. A plain texture is only said when neither colour nor shape would be.
        Without `shape` the noun is `thing`.
        """
        words = [self.colour if colour else "", self.texture if texture and self.texture != "plain" else ""]
        if order:
            words.reverse()
        return " ".join(w for w in (size, *words, self.shape if shape else "thing") if w)


CUTOUT = Kind("", "photographic", "patch")


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """All 400 kinds, in a fixed order."""
    return tuple(Kind(c, t, s) for s in SHAPES for c in COLOURS for t in TEXTURES)


@functools.cache
def held_out_kinds() -> tuple[Kind, ...]:
    """The 64 kinds that only the held-out split shows: 6 or 7 of every shape and colour, 16 of every texture.

    Dealt greedily from a fixed permutation, so that no single word is rarer than another in either split.
    """
    order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(kinds()))
    caps = {"shape": 7, "colour": 7, "texture": 16}
    seen: dict[tuple[str, str], int] = {}
    chosen: list[Kind] = []
    for kind in (kinds()[i] for i in order):
        words = [(role, getattr(kind, role)) for role in caps]
        if len(chosen) < HELD_OUT_KINDS and all(seen.get(w, 0) < caps[w[0]] for w in words):
            chosen.append(kind)
            seen.update({w: seen.get(w, 0) + 1 for w in words})
    return tuple(sorted(chosen))


@functools.cache
def training_kinds() -> tuple[Kind, ...]:
    """The kinds that the training split shows: all that are not held out."""
    return tuple(k for k in kinds() if k not in set(held_out_kinds()))


def size_word(radius: float) -> str:
    """`small`, `large`, or nothing for what lies between. radius: over the shorter side of the image."""
    return "small" if radius < SMALL else "large" if radius > LARGE else ""


def with_article(phrase: str) -> str:
    """`a red ring`, `an orange star`."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def colour_prompts() -> str:
    """What a detector is asked for to find everything there is, as a recipe has it: 'red thing . green thing . ...'."""
    return " . ".join(f"{colour} thing" for colour in COLOURS)
