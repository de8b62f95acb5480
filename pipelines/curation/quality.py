"""Filters on measured quality: an item below a bound is dropped, with the measure and the bound it missed."""

from __future__ import annotations

import numpy as np

from pipelines.curation.pool import Pool

# (bound of the recipe, measure, whether the bound is a least or a most, what the item is called)
_BOUNDS = (
    ("min_side", "side", "min", "small"),
    ("min_sharpness", "sharpness", "min", "blurred"),
    ("min_luminance", "luminance", "min", "dark"),
    ("max_luminance", "luminance", "max", "bright"),
    ("min_contrast", "contrast", "min", "flat"),
    ("min_entropy", "entropy", "min", "empty"),
)


def drop_low_quality(pool: Pool) -> None:
    """Drops items outside the recipe's bounds, each for the first bound that it misses. A missing measure passes."""
    measures = pool.items.quality | {"side": np.minimum(pool.items.width, pool.items.height).astype(np.float64)}
    for bound, measure, way, flaw in _BOUNDS:
        limit = getattr(pool.recipe.filters, bound)
        if limit is None:
            continue
        value = measures[measure]
        outside = value < limit if way == "min" else value > limit
        items = np.flatnonzero(pool.alive & outside)
        pool.decisions.settle("quality", items, flaw=flaw, measure=measure, value=value[items], limit=float(limit))
