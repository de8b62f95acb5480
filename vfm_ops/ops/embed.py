"""One embedding a frame, by any model of `vfm models`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from vfm_ops import op
from vfm_ops.embed import describe_embedder, load_embedder
from vfm_ops.embed.columns import embedding_field, patches_field, token_array, vector_array
from vfm_ops.models.device import device_to_describe


class EmbedSettings(op.Settings):
    """The model, and how it is run."""

    model: str  # family:name-or-path
    dtype: Literal["float16", "float32"] = "float16"
    patch_tokens: bool = False  # also a column of patch tokens
    preprocess: Literal["fast", "exact"] = "fast"  # exact: Pillow's filters, as the model's own processor
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "exact", "bf16", "fp16"] = "auto"
    batch_size: int | None = Field(None, gt=0)  # None: measured best for the device


class Embed(op.Op):
    """L2-normalised vectors, FixedSizeList of the model's dimension; in a lake, a column named by the model."""

    name, main = "embed", "model"
    unkeyed = ("runtime", "precision", "batch_size")
    Settings = EmbedSettings
    settings: EmbedSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._number = pa.float16() if self.settings.dtype == "float16" else pa.float32()

    def place(self, device: str, threads: int | None) -> None:
        """Where the model runs, which decides its runtime and precision."""
        super().place(device, threads)
        self.__dict__.pop("description", None)

    @cached_property
    def description(self) -> Any:
        """Its dimension, view, digest, runtime and precision, mostly without loading it."""
        here = {"device": device_to_describe(self.device)}
        return describe_embedder(self.settings.model, **(self._arguments | here))

    @cached_property
    def embedder(self) -> Any:
        """The model, loaded."""
        batch = self.settings.batch_size or 32
        return load_embedder(self.settings.model, batch_size=batch, threads=self.threads, **self._arguments)

    @property
    def needs(self) -> op.View:  # type: ignore[override]
        """The model's own view."""
        return self.description.view

    @property
    def adds(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """The vector, and the patch tokens where they are wanted."""
        vector = {"embedding": pa.list_(self._number, self.description.dim)}
        size = self.description.token_dim
        return vector | ({"patches": pa.list_(pa.list_(self._number, size))} if size else {})

    @property
    def runtime(self) -> str:  # type: ignore[override]
        """That of the model."""
        return str(self.description.runtime)

    @property
    def one_thread(self) -> bool:  # type: ignore[override]
        """What torch spreads a small batch over is too little for a second thread; OpenVINO has streams."""
        return self.runtime == "torch"

    def fields(self, known: Iterable[pa.Field] = ()) -> list[pa.Field]:
        """Named by the model; with what is needed to embed a query the same way as metadata."""
        told, model = self.description, self.settings.model
        facts = {name: getattr(told, name) for name in ("digest", "runtime", "precision")}
        facts["preprocess"] = self.settings.preprocess
        vector = embedding_field(model, told.dim, facts, self._number, known)
        tokens = patches_field(model, told.token_dim, self._number, vector.name) if told.token_dim else None
        return [vector] if tokens is None else [vector, tokens]

    def digest(self) -> str:
        """Of the weights."""
        return str(self.description.digest)

    def run(self, images: np.ndarray | list[np.ndarray]) -> dict[str, Any]:
        """images: uint8 in the model's view. Returns float vectors (B, D), and patch tokens."""
        result = next(self.apply_batches([(images, {})]))
        if any(result.errors):
            raise ValueError(next(error for error in result.errors if error))
        return dict(result.columns)

    def apply_batches(self, batches: Iterable[tuple[op.Pictures, Mapping[str, Sequence[Any]]]]) -> Iterator[op.Result]:
        """Several batches are under way at once."""
        adds = self.adds
        for vectors, tokens in self.embedder.stream(pictures for pictures, _ in batches):
            bad = ~np.isfinite(vectors).all(axis=1)
            columns = {"embedding": vector_array(vectors, adds["embedding"])}
            if tokens is not None:
                columns["patches"] = token_array(tokens, adds["patches"])
            if bad.any():
                kept = pa.array(np.where(bad, -1, np.arange(len(bad))), mask=bad)
                columns = {name: values.take(kept) for name, values in columns.items()}
            text = f"{self.settings.model} gave a vector that is not finite"
            yield op.Result(columns, [text if b else None for b in bad], [None] * len(bad))

    @property
    def _arguments(self) -> dict[str, Any]:
        s = self.settings
        chosen = {"runtime": s.runtime, "precision": s.precision, "patch_tokens": s.patch_tokens}
        return {"device": self.device, "preprocess": s.preprocess, **chosen}
