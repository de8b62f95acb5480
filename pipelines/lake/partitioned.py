"""Keys of a whole lake, compared without holding them: spread over partitions, which are looked at one after the other.

Equal keys come to the same partition, whatever table they are of. What many rows add up to lies in temporary files, so that
memory is that of one partition.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError

PARTITIONS = 64
HELD_BYTES = 32 << 20  # of one set of rows, before they go to a file


class Partitioned:
    """Rows of int64 columns, the first of which is the key that they are spread by. It is filled first, and then read.

    Example:
        >>> seen = Partitioned(1)
        >>> seen.add(hashes)
        >>> twice = sum(len(part) - len(np.unique(part)) for part in seen)
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._held: list[list[np.ndarray]] = [[] for _ in range(PARTITIONS)]
        self._written: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]  # (offset, bytes)
        self._held_bytes = self._end = 0
        self._file: Any = None

    def __len__(self) -> int:
        """How many rows."""
        written = sum(size for blocks in self._written for _, size in blocks)
        return (written + self._held_bytes) // (8 * self._width)

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows. columns: int64 (N,) each. UsageError where the temporary folder has no room for them."""
        rows = np.stack(columns, axis=1)
        if not len(rows):
            return
        partition = rows[:, 0].view(np.uint64) % PARTITIONS
        order = np.argsort(partition, kind="stable")
        rows, ends = rows[order], np.searchsorted(partition[order], np.arange(1, PARTITIONS))
        for held, part in zip(self._held, np.split(rows, ends)):
            if len(part):
                held.append(part)
        self._held_bytes += rows.nbytes
        if self._held_bytes >= HELD_BYTES:
            self._spill()

    def __iter__(self) -> Iterator[np.ndarray]:
        """The partitions, int64 (N, width), the same number of any set of rows: `zip` joins two by their keys."""
        for held, written in zip(self._held, self._written):
            blocks = [self._read(*place) for place in written] + held
            yield np.concatenate(blocks) if blocks else np.empty((0, self._width), np.int64)

    def _spill(self) -> None:
        try:
            if self._file is None:  # it goes with this object
                self._file = tempfile.TemporaryFile(prefix="vfm-keys-")  # noqa: SIM115
            for held, written in zip(self._held, self._written):
                if held:
                    block = np.concatenate(held)
                    self._file.write(block.data)
                    written.append((self._end, block.nbytes))
                    self._end += block.nbytes
                    held.clear()
            self._file.flush()
        except OSError as e:
            raise no_room("the keys of so many rows", e) from e
        self._held_bytes = 0

    def _read(self, offset: int, size: int) -> np.ndarray:
        return np.frombuffer(os.pread(self._file.fileno(), size, offset), np.int64).reshape(-1, self._width)


def no_room(what: str, error: OSError) -> UsageError:
    """What to raise where the temporary folder did not take something."""
    return UsageError(
        f"{what} need more room in {tempfile.gettempdir()}: {error.strerror}; free some space there, or name another folder "
        "in TMPDIR"
    )
