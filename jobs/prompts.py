"""Prompts as options of the command line: what `vfm segment` and `vfm track` read alike."""

from __future__ import annotations

import numpy as np

from vfm_ops.errors import UsageError


def boxes_of(options: list[str] | None) -> list[list[float]]:
    """`--box x0,y0,x1,y1`, one an object. UsageError."""
    return [_numbers(text, (4,), "--box") for text in options or []]


def points_of(options: list[str] | None) -> list[tuple[list[list[float]], list[int]]]:
    """`--point "x,y x,y,0"`: points of one object, with a third number 0 where the point is off it. UsageError."""
    found = []
    for text in options or []:
        numbers = [_numbers(part, (2, 3), "--point") for part in text.split()]
        if not numbers:
            raise UsageError("--point is empty: give x,y on the object")
        labels = [n[2] if len(n) == 3 else 1.0 for n in numbers]
        if any(label not in (0.0, 1.0) for label in labels):
            raise UsageError(f"--point {text}: the third number of a point is 1 (on the object) or 0 (off it)")
        found.append(([n[:2] for n in numbers], [int(label) for label in labels]))
    return found


def _numbers(text: str, counts: tuple[int, ...], option: str) -> list[float]:
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not np.isfinite(values).all():
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{option} {text}: give {wanted} numbers, separated by commas")
    return values
