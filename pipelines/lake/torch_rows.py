"""Rows of a table for PyTorch: read block by block, pictures decoded, shared out among a DataLoader's workers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.lake.arrow import Readable
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits

BLOCK = 64  # rows read at once
PICTURE = "jpeg"


class TorchRows(IterableDataset):
    """What `Table.to_torch` gives. It holds eight bytes a row, so that workers and epochs agree on which row is whose.

    The rows are those of one version of the table, whatever is written meanwhile.
    """

    def __init__(
        self,
        lake: Readable,
        table: str,
        columns: list[str],
        where: str | None,
        transform: Callable[[Any], Any] | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        if transform is not None and PICTURE not in columns:
            raise UsageError(f"a transform needs pictures: name {PICTURE} among the columns, of a table that has it")
        self.columns, self.transform, self.shuffle, self.seed, self.epoch = columns, transform, shuffle, seed, 0
        self._lake, self._table = lake, table
        if PICTURE in columns:
            where = f"({where}) AND {PICTURE} IS NOT NULL" if where else f"{PICTURE} IS NOT NULL"
        self._version, self._row_ids = _pinned_rows(lake, table, where)
        self._process = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())  # sent to a process of its own; a forked one never comes here

    def __len__(self) -> int:
        return len(self._row_ids)

    def set_epoch(self, epoch: int) -> None:
        """Gives a shuffled dataset the order of that epoch, as `DistributedSampler.set_epoch` does."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if os.getpid() != self._process:  # Lance's threads are not there: it would wait for them for ever
            raise UsageError(
                "a lake can't be read in a forked process: give DataLoader multiprocessing_context='spawn'"
            )
        row_ids = self._row_ids
        if self.shuffle:
            row_ids = np.random.default_rng((self.seed, self.epoch)).permutation(row_ids)
        worker = get_worker_info()
        if worker is not None:
            row_ids = np.array_split(row_ids, worker.num_workers)[worker.id]
        for start in range(0, len(row_ids), BLOCK):
            block = row_ids[start : start + BLOCK].tolist()
            yield from self._items(self._lake.take(self._table, block, self._version, self.columns))

    def _items(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        values = {name: _values(rows[name]) for name in rows.column_names if name != PICTURE}
        for index in range(rows.num_rows):
            item = {name: column[index] for name, column in values.items()}
            if PICTURE in self.columns:
                image = _decoded(rows[PICTURE][index].as_py())
                if image is None:
                    continue
                item["image"] = self.transform(image) if self.transform else image
            yield item


def _pinned_rows(lake: Readable, table: str, where: str | None) -> tuple[int, np.ndarray]:
    """A version of a table and the ids of its rows. Asked for again while somebody commits in between."""
    while True:
        dataset = lake.dataset(table)
        if dataset is None:
            return 0, np.empty(0, np.uint64)
        batches = lake.scan(table, [], where, with_row_id=True)
        ids = [batch["_rowid"].to_numpy() for batch in batches]
        newest = lake.dataset(table)
        if newest is not None and newest.version == dataset.version:
            return int(dataset.version), np.concatenate(ids) if ids else np.empty(0, np.uint64)


def _decoded(jpeg: bytes) -> torch.Tensor | None:
    """uint8 (3, H, W), RGB; None, with a warning, for a picture that does not decode: it costs itself alone."""
    try:
        image_HWC = decode_image(jpeg, Limits(), "a stored picture")
    except MediaError as error:
        warnings.warn(f"{error} Its row is left out.", RuntimeWarning, stacklevel=2)
        return None
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; lists of numbers, nested ones too, as tensors, floats as float32."""
    kind = column.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if kind == column.type or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return column.to_pylist()
    dtype = torch.float32 if pa.types.is_floating(kind) else torch.int64
    return [None if value is None else torch.tensor(value, dtype=dtype) for value in column.to_pylist()]
