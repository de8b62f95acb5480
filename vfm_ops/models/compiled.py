"""What a runtime is given and gives back: `runtime` chooses, `torch_runtime` and `openvino_runtime` build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Batch = np.ndarray | tuple[np.ndarray, ...]


class CompiledModule(ABC):
    """A compiled forward pass. `runtime`: openvino or torch; `precision`: exact, bf16 or fp16; `batch`: static batch."""

    runtime: str
    precision: str
    batch: int

    def __call__(self, *inputs: np.ndarray) -> Batch:
        """inputs: arrays (B, ...), any B >= 1. Returns one array (B, ...) or a tuple of them; floats come as float32."""
        return next(self.map(iter([inputs])))

    @abstractmethod
    def map(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Results of batches, in order. Work on later batches goes on while the caller handles earlier results."""


@dataclass(frozen=True)
class Request:
    """What a runtime needs to build a callable; made by `compile_module`."""

    load: Callable[[], Any]
    example: tuple[np.ndarray, ...]
    device: str
    static_batch: int | None
    streams: int | None
    threads: int | None
    folder: Path | None
    torch_compile: bool = False


class ConversionFailed(Exception):
    """A module that OpenVINO's importer can't take."""


def tile(array: np.ndarray, batch: int) -> np.ndarray:
    """The array's first items repeated or cut to a batch, contiguous."""
    index = np.arange(batch) % len(array)
    return np.ascontiguousarray(array[index])
