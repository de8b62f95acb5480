"""Memory that two processes see: an anonymous file, mapped by both, that either may grow.

Arrays and bytes inside a JSON message are written to the slab and leave a reference in the text: {"@": [offset, dtype,
shape]} or {"#": [offset, length]}. So messages stay small, and reading an array is a pointer, not a copy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

_ALIGNMENT = 64
SLAB_BYTES = 1 << 20


class Slab:
    """A shared buffer. fd: of an anonymous file. size: bytes mapped here."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size = fd, 0
        self.resize(size)

    @classmethod
    def create(cls, size: int = SLAB_BYTES) -> Slab:
        """A new one, of zeros; memory is used as it is written."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("vfm-slab", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
        return cls(fd, size)

    def resize(self, size: int) -> None:
        """Map `size` bytes, enlarging the file when it is shorter. Arrays over the old mapping stay valid."""
        if size == self.size:
            return
        if os.fstat(self.fd).st_size < size:
            os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.size = size

    def shrink(self, size: int = SLAB_BYTES) -> None:
        """Give memory back. The other side must map anew before it touches the slab again."""
        if self.size > size:
            self.map = mmap.mmap(self.fd, size)
            self.size = size
            os.ftruncate(self.fd, size)

    def array(self) -> np.ndarray:
        """uint8 (size,) over the mapping."""
        return np.frombuffer(self.map, np.uint8)

    def close(self) -> None:
        """Close the file; arrays over the mapping stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SlabWriter:
    """Writes the arrays and bytes of messages one after another from `start` on; grows the slab as needed."""

    def __init__(self, slab: Slab, start: int = 0) -> None:
        self._slab, self.used = slab, start
        self._encode = json.JSONEncoder(default=self._reference, separators=(",", ":"), check_circular=False).encode

    def dumps(self, message: Any) -> str:
        """JSON text of a message that may hold arrays, bytes and NumPy scalars."""
        return self._encode(message)

    def put(self, raw: np.ndarray) -> int:
        """Write uint8 (n,); returns the offset."""
        offset = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        self.used = offset + raw.size
        if self.used > self._slab.size:
            self._slab.resize(max(self.used, 2 * self._slab.size))
        self._slab.array()[offset : self.used] = raw
        return offset

    def _reference(self, value: Any) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            raw = np.frombuffer(value, np.uint8)
            return {"#": [self.put(raw), raw.size]}
        if isinstance(value, np.ndarray):
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            return {"@": [self.put(flat), value.dtype.str, value.shape]}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} can't cross to the decoder process")


def loads(text: str | bytes, memory: np.ndarray) -> Any:
    """The message that `SlabWriter.dumps` wrote. memory: uint8 over the slab; arrays are views of it, bytes are copies."""
    return json.loads(text, object_hook=_dereference(memory))


def _dereference(memory: np.ndarray) -> Callable[[dict[str, Any]], Any]:
    def hook(value: dict[str, Any]) -> Any:
        if len(value) == 1:
            if "@" in value:
                offset, dtype, shape = value["@"]
                size = math.prod(shape) * np.dtype(dtype).itemsize
                return memory[offset : offset + size].view(dtype).reshape(shape)
            if "#" in value:
                offset, length = value["#"]
                return memory[offset : offset + length].tobytes()
        return value

    return hook
