"""Embedding columns of a lake: their metadata names the model, weights, runtime and precision that made the vectors.

What is compared with a column's vectors (a query, an outside set) is embedded by just those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.lake import Lake
from pipelines.lake.schema import facts_of
from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class Column:
    """An embedding column of frames, and what made it."""

    name: str
    spec: str
    digest: str
    runtime: str
    precision: str
    preprocess: str

    @classmethod
    def of(cls, field: pa.Field) -> Column:
        """From the field's metadata."""
        facts = facts_of(field)
        runtime, precision, preprocess = (
            facts.get(name, default)
            for name, default in (("runtime", "auto"), ("precision", "auto"), ("preprocess", "fast"))
        )
        return cls(field.name, facts["spec"], facts.get("digest", ""), runtime, precision, preprocess)


def embedding_columns(lake: Lake) -> list[Column]:
    """The embedding columns of a lake. UsageError when it has none."""
    fields = [f for f in lake.schema("frames") if (f.metadata or {}).get(b"spec")]
    if not fields:
        raise UsageError(f"{lake.root} has no embeddings yet: run vfm process --lake {lake.root}")
    return [Column.of(f) for f in fields]


def current_first(columns: list[Column]) -> list[Column]:
    """Columns of one spec, made by different weights: first the one that the weights under that name would make now."""
    from vfm_ops.embed import describe_embedder

    if len(columns) < 2:
        return columns
    digest = describe_embedder(columns[0].spec, **_settings(columns[0])).digest
    return sorted(columns, key=lambda c: c.digest != digest)


def has_text_tower(column: Column) -> bool:
    """Whether a column's model embeds texts."""
    from vfm_ops.embed import describe_embedder

    return bool(describe_embedder(column.spec, **_settings(column)).has_text)


def load_same(column: Column, device: str = "auto") -> Any:
    """The embedder that made a column. UsageError when the weights under that name are others now."""
    from vfm_ops.embed import load_embedder

    embedder = load_embedder(column.spec, device=device, **_settings(column))
    if column.digest and embedder.digest != column.digest:
        raise UsageError(
            f"the weights of {column.spec} have digest {embedder.digest[:16]}, but column {column.name} was made with "
            f"{column.digest[:16]}: restore those weights, or embed the lake anew under another name"
        )
    return embedder


def _settings(column: Column) -> dict[str, Any]:
    return {"runtime": column.runtime, "precision": column.precision, "preprocess": column.preprocess}
