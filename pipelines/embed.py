"""The embed op: pixels of a view in, one vector a frame out, and patch tokens on request; and the columns that it fills."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.frames import drop_views, is_frame, view_pixels
from pipelines.lake import embedding_column, embedding_field, patches_field
from pipelines.recipe import Embed, Resources
from vfm_ops.embed import load_embedder


class EmbedFrames:
    """Op: adds a model's columns to working tables and drops its view. Batches flow through while others are decoded."""

    def __init__(self, model: Embed, resources: Resources, threads: int | None = None) -> None:
        self.embedder = load_embedder(
            model.model,
            device=resources.device,
            runtime=model.runtime,
            precision=model.precision,
            patch_tokens=model.patch_tokens,
            preprocess=model.preprocess,
            batch_size=model.batch_size or 32,
            threads=threads,
        )
        self.name = embedding_column(model.model)
        self.fields = column_fields(model, self.embedder)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One table at a time."""
        return next(iter(self.stream([rows])))

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Tables in, tables out, in order; several batches are under way at once."""
        waiting: deque[pa.Table] = deque()

        def batches() -> Iterator[Any]:
            for rows in tables:
                waiting.append(rows)
                frames = rows.filter(is_frame(rows)) if rows["outcome"].null_count != rows.num_rows else rows
                if frames.num_rows:
                    yield view_pixels(frames, self.name, self.embedder.view)

        for vectors, tokens in self.embedder.stream(batches()):
            while waiting[0]["outcome"].null_count == 0:
                yield self._add(waiting.popleft(), None, None)
            yield self._add(waiting.popleft(), vectors, tokens)
        while waiting:
            yield self._add(waiting.popleft(), None, None)

    def _add(self, rows: pa.Table, vectors: np.ndarray | None, tokens: Any) -> pa.Table:
        frames = is_frame(rows)
        rows = drop_views(rows, self.name)
        if vectors is None:
            return _append(rows, self.fields, [pa.nulls(rows.num_rows, f.type) for f in self.fields])
        columns = [vector_array(vectors, self.fields[0].type)]
        if tokens is not None:
            columns.append(token_array(tokens, self.fields[1].type))
        bad = ~np.isfinite(vectors).all(axis=1)
        if len(vectors) != rows.num_rows:  # closing rows among the frames
            position = np.full(rows.num_rows, -1)
            position[frames.to_numpy()] = np.arange(len(vectors))
            columns = [c.take(pa.array(position, mask=position < 0)) for c in columns]
            bad = np.where(position < 0, False, bad[position])
        if bad.any():
            text = f"{self.embedder.spec} gave a vector that is not finite"
            error = pc.if_else(pa.array(bad), pc.coalesce(rows["error"], pa.scalar(text)), rows["error"])
            rows = rows.set_column(rows.schema.get_field_index("error"), "error", error)
        return _append(rows, self.fields, columns)


def column_fields(model: Embed, embedder: Any) -> list[pa.Field]:
    """The columns of `frames` for one model: its vector, with what is needed to embed a query the same way in the metadata,
    and its patch tokens where the recipe wants them."""
    metadata = {
        "digest": embedder.digest,
        "runtime": embedder.runtime,
        "precision": embedder.precision,
        "preprocess": model.preprocess,
    }
    dtype = pa.float16() if model.dtype == "float16" else pa.float32()
    fields = [embedding_field(model.model, embedder.dim, metadata, dtype)]
    return [*fields, patches_field(model.model, embedder.token_dim, dtype)] if embedder.token_dim else fields


def vector_array(vectors: np.ndarray, type: pa.DataType) -> pa.Array:
    """float (N, D) as FixedSizeList<float16|float32>[D]."""
    values = vectors.astype(type.value_type.to_pandas_dtype(), copy=False).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type.list_size)


def token_array(tokens: Any, type: pa.DataType) -> pa.Array:
    """Patch tokens of B images, (B, N, C) or a list of (n, C), as List<FixedSizeList<float16|float32>[C]>."""
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    values = vector_array(np.concatenate(tokens), type.value_type)
    return pa.ListArray.from_arrays(offsets, values, type)


def _append(rows: pa.Table, fields: list[pa.Field], columns: list[pa.Array]) -> pa.Table:
    for field, column in zip(fields, columns, strict=True):
        rows = rows.append_column(field, column)
    return rows
