"""The objectives: a file each, named as the objective, and another one is another file (docs/adding-an-objective.md)."""

from __future__ import annotations

import pkgutil


def names() -> tuple[str, ...]:
    """Names of all objectives, sorted; none is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
