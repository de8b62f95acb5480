"""The embed op: pixels of a view in, one vector a frame out; and the column that it fills."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.frames import drop_views, is_frame, view_pixels
from pipelines.lake import embedding_column, embedding_field
from pipelines.recipe import Embed, Resources
from vfm_ops.embed import load_embedder


class EmbedFrames:
    """Op: adds `emb_MODEL` to working tables and drops the model's view. Batches flow through while others are decoded."""

    def __init__(self, model: Embed, resources: Resources, threads: int | None = None) -> None:
        self.embedder = load_embedder(
            model.model,
            device=resources.device,
            runtime=model.runtime,
            precision=model.precision,
            preprocess=model.preprocess,
            batch_size=model.batch_size or 32,
            threads=threads,
        )
        self.name = embedding_column(model.model)
        self.field = column_field(model, self.embedder)

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

        for vectors in self.embedder.embed_image_stream(batches()):
            while waiting[0]["outcome"].null_count == 0:
                yield self._add(waiting.popleft(), None)
            yield self._add(waiting.popleft(), vectors)
        while waiting:
            yield self._add(waiting.popleft(), None)

    def _add(self, rows: pa.Table, vectors: np.ndarray | None) -> pa.Table:
        frames = is_frame(rows)
        rows = drop_views(rows, self.name)
        if vectors is None:
            return rows.append_column(self.field, pa.nulls(rows.num_rows, self.field.type))
        column = vector_array(vectors, self.field.type)
        bad = ~np.isfinite(vectors).all(axis=1)
        if len(vectors) != rows.num_rows:  # closing rows among the frames
            position = np.full(rows.num_rows, -1)
            position[frames.to_numpy()] = np.arange(len(vectors))
            column = column.take(pa.array(position, mask=position < 0))
            bad = np.where(position < 0, False, bad[position])
        if bad.any():
            text = f"{self.embedder.spec} gave a vector that is not finite"
            error = pc.if_else(pa.array(bad), pc.coalesce(rows["error"], pa.scalar(text)), rows["error"])
            rows = rows.set_column(rows.schema.get_field_index("error"), "error", error)
        return rows.append_column(self.field, column)


def column_field(model: Embed, embedder: Any) -> pa.Field:
    """The column of `frames` for one model, with what is needed to embed a query the same way."""
    metadata = {
        "digest": embedder.digest,
        "runtime": embedder.runtime,
        "precision": embedder.precision,
        "preprocess": model.preprocess,
    }
    dtype = pa.float16() if model.dtype == "float16" else pa.float32()
    return embedding_field(model.model, embedder.dim, metadata, dtype)


def vector_array(vectors: np.ndarray, type: pa.DataType) -> pa.Array:
    """float (N, D) as FixedSizeList<float16|float32>[D]."""
    values = vectors.astype(type.value_type.to_pandas_dtype(), copy=False).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type.list_size)
