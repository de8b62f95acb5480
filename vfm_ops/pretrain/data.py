"""Samples in memory, and the order in which training sees them: a function of seed and epoch, never of workers."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError


@dataclass
class Samples:
    """images: uint8 (N, H, W, C), or a sequence of (H, W, C) of any sizes; labels int64 (N,); captions: N strings (or lists
    of strings). ids default to the index."""

    images: Any
    labels: np.ndarray | None = None
    captions: Sequence[Any] | None = None
    ids: Sequence[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {"id": self.ids[index] if len(self.ids) else index, "image": self.images[index]}
        if self.labels is not None:
            sample["label"] = self.labels[index]
        if self.captions is not None:
            sample["caption"] = self.captions[index]
        return sample


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of 0 .. count - 1 for one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


_cached_order = lru_cache(maxsize=4)(epoch_order)


def batch_positions(step: int, batch: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, index) of each sample of a global step's batch.

    Epochs follow each other without a gap: a batch may end one epoch and begin the next, so every batch is full and no
    sample is dropped. The step number is the whole position in the data, for a resume on any number of workers.
    """
    places = range(step * batch, (step + 1) * batch)
    return [(p // count, int(_cached_order(count, seed, p // count)[p % count])) for p in places]


def read_idx(path: Path) -> np.ndarray:
    """An MNIST idx file (gzipped or not) as uint8 of its shape. UsageError when it is something else."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 8 or raw[:3] != b"\0\0\x08":
        raise UsageError(f"{path} is no idx file of bytes")
    dims = raw[3]
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    if len(raw) != 4 + 4 * dims + int(np.prod(shape)):
        raise UsageError(f"{path} is cut off: {len(raw)} bytes for shape {shape}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def fashion_mnist(folder: str | Path, split: str = "train") -> Samples:
    """Fashion-MNIST (Xiao et al. 2017) with captions made of the class names: 60,000 (train) or 10,000 (test) of
    28 x 28 x 1."""
    prefix = {"train": "train", "test": "t10k"}[split]
    files = [Path(folder) / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise UsageError(f"no Fashion-MNIST at {folder} ({missing[0]}): apt-get install dataset-fashion-mnist")
    images, labels = read_idx(files[0])[..., None], read_idx(files[1]).astype(np.int64)
    captions = [[template.format(FASHION_CLASSES[label]) for template in CAPTION_TEMPLATES] for label in labels]
    return Samples(images, labels, captions)


CAPTION_TEMPLATES = ("a photo of a {}", "a grey {}", "a picture of one {} on black", "the {}")
