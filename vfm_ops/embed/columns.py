"""What the columns of an embedding model are called, and how they are stored: a lake's, and whoever reads one."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def embedding_column(spec: str, digest: str = "", known: Iterable[pa.Field] = ()) -> str:
    """Column of `frames` for a model spec: `clip:openai/clip-vit-base-patch32` -> `emb_clip_openai_clip_vit_base_patch32`.

    known: fields that are there already. Where that name is taken by other weights (two folders of one last name, a
    checkpoint trained on), the column ends in the first eight digits of `digest`: two models never share one.
    """
    name = _model_column("emb", spec)
    taken = next((f for f in known if f.name == name), None)
    other = (taken.metadata or {}).get(b"digest", b"").decode() if taken is not None else ""
    return f"{name}_{digest[:8]}" if other and digest and other != digest else name


def patches_column(spec: str, column: str = "") -> str:
    """Column of `frames` for a model's patch tokens: `patches_...`, named as its embedding's (`column`, where it has one)."""
    return "patches_" + column.removeprefix("emb_") if column else _model_column("patches", spec)


def is_model_column(name: str) -> bool:
    """Whether a column of `frames` holds what a model made, its vectors or its patch tokens."""
    return name.startswith(("emb_", "patches_"))


def _model_column(kind: str, spec: str) -> str:
    family, _, name = spec.partition(":")
    if "/" in name and name.startswith(("/", ".", "~")):
        name = name.rstrip("/").rsplit("/", 1)[-1]
    return f"{kind}_" + re.sub(r"[^a-z0-9]+", "_", f"{family}_{name}".lower()).strip("_")


def embedding_field(
    spec: str,
    dim: int,
    metadata: dict[str, str],
    dtype: pa.DataType | None = None,
    known: Iterable[pa.Field] = (),
) -> pa.Field:
    """Arrow field of one embedding model: FixedSizeList<float16>[dim], with the model's identity in its metadata.

    known: see `embedding_column`.
    """
    name = embedding_column(spec, metadata.get("digest", ""), known)
    return pa.field(name, pa.list_(dtype or pa.float16(), dim), metadata={"spec": spec, **metadata})


def patches_field(spec: str, dim: int, dtype: pa.DataType | None = None, column: str = "") -> pa.Field:
    """Arrow field of a model's patch tokens: List<FixedSizeList<float16>[dim]>, one entry a patch, in row order.

    column: that of the model's embedding, which the tokens are named after.
    """
    return pa.field(patches_column(spec, column), pa.list_(pa.list_(dtype or pa.float16(), dim)))


def vector_array(vectors: np.ndarray, type: pa.DataType) -> pa.Array:
    """float (N, D) as FixedSizeList<float16|float32>[D]."""
    values = vectors.astype(type.value_type.to_pandas_dtype(), copy=False).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type.list_size)


def token_array(tokens: np.ndarray | list[np.ndarray], type: pa.DataType) -> pa.Array:
    """Patch tokens of B images, (B, N, C) or a list of (n, C), as List<FixedSizeList<float16|float32>[C]>."""
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    values = vector_array(np.concatenate(tokens), type.value_type)
    return pa.ListArray.from_arrays(offsets, values, type)
