"""What the user asks for, in one shape: for every image a list of prompts, and a threshold for each prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vfm_ops.errors import UsageError

Prompts = str | Sequence[str] | Sequence[Sequence[str]]

# In a list, "st. bernard" is one prompt and "person . bicycle ." is two: a separator there has a space before it.
_SEPARATOR_IN_LIST = re.compile(r"\s+\.(?:\s+|$)|\.\s*$")


def split_prompt(text: str) -> list[str]:
    """Split Grounding DINO's notation: `"person . bicycle ."` or `"person. bicycle"` -> `["person", "bicycle"]`."""
    return [part for part in (p.strip() for p in text.split(".")) if part]


def prompts_per_image(prompts: Prompts, images: int) -> list[list[str]]:
    """One list of prompts for each of `images` images, in the order given, duplicates dropped.

    A string, or a flat list of strings, is the vocabulary of every image; a list of lists gives every image its own.
    Raises UsageError for an empty prompt, an empty list, or another number of lists than images.
    """
    if isinstance(prompts, str):
        shared = _unique(split_prompt(prompts), "prompts")
        return [shared] * images
    prompts = list(prompts)
    if not prompts:
        raise UsageError("prompts is empty: name at least one thing to look for, such as 'person . bicycle .'")
    if all(isinstance(p, str) for p in prompts):
        shared = _unique(_split_items(prompts, "prompts"), "prompts")
        return [shared] * images
    if len(prompts) != images:
        raise UsageError(
            f"prompts has {len(prompts)} lists for {images} images: give one list an image, or one for all"
        )
    result = []
    for i, own in enumerate(prompts):
        where = f"prompts[{i}]"
        parts = split_prompt(own) if isinstance(own, str) else _split_items(own, where)
        result.append(_unique(parts, where))
    return result


def _split_items(items: Sequence[object], where: str) -> list[str]:
    parts: list[str] = []
    for item in items:
        if not isinstance(item, str):
            raise UsageError(f"{where} holds {item!r}, which is no string")
        found = [p for p in (s.strip() for s in _SEPARATOR_IN_LIST.split(item)) if p]
        if not found:
            raise UsageError(f"{where} holds an empty prompt: name what to look for, or leave it out")
        parts += found
    return parts


def _unique(parts: Sequence[str], where: str) -> list[str]:
    if not parts:
        raise UsageError(f"{where} is empty: name at least one thing to look for, such as 'person . bicycle .'")
    return list(dict.fromkeys(parts))


def threshold_of_each(
    prompts: Sequence[str], thresholds: float | Mapping[str, float] | None, default: float
) -> np.ndarray:
    """float32 (P,): the score above which a box of each prompt is kept; prompts that a mapping lacks get `default`."""
    if thresholds is None:
        thresholds = default
    if isinstance(thresholds, Mapping):
        values = [thresholds.get(p, default) for p in prompts]
    else:
        values = [thresholds] * len(prompts)
    for prompt, value in zip(prompts, values):
        if not (isinstance(value, (int, float)) and math.isfinite(value) and 0.0 <= value <= 1.0):
            raise UsageError(f"the threshold of {prompt!r} is {value!r}: give a number from 0 to 1")
    return np.asarray(values, dtype=np.float32)


def check_threshold_names(
    thresholds: float | Mapping[str, float] | None, vocabularies: Sequence[Sequence[str]]
) -> None:
    """Raise UsageError when a per-prompt threshold names a prompt that no image has: most often a spelling mistake."""
    if isinstance(thresholds, Mapping):
        known = {p for own in vocabularies for p in own}
        unknown = [name for name in thresholds if name not in known]
        if unknown:
            raise UsageError(f"thresholds names {unknown[0]!r}, but the prompts are: {', '.join(sorted(known))}")
