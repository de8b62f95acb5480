"""64-bit hashes of Arrow values of any type, so that two versions of a table can be compared in 8 bytes a value.

Strings and bytes are hashed by Python, whose hash is salted anew in each process: compare only what one process has hashed.
Among 10^8 distinct values, two share a hash in about one table of 4,000.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

NULL = np.uint64(0)  # of a value that is null; no other value has it
_STEP = np.uint64(0x9E3779B97F4A7C15)


def value_hashes(array: pa.Array) -> np.ndarray:
    """uint64 (N,): equal values of one type have equal hashes, floats by their bits; NULL where a value is null."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    hashes = _hashes(array)
    hashes[hashes == NULL] = _STEP
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = NULL
    return hashes


def combined_hashes(columns: list[np.ndarray], count: int) -> np.ndarray:
    """uint64 (count,) of several columns' hashes; their order counts."""
    total = np.zeros(count, np.uint64)
    for column in columns:
        total = _mix(total * np.uint64(3) + column + _STEP)
    return total


def _hashes(array: pa.Array) -> np.ndarray:
    kind, count = array.type, len(array)
    if pt.is_null(kind):
        return np.zeros(count, np.uint64)
    if pt.is_dictionary(kind):
        return value_hashes(array.dictionary_decode())
    if pt.is_struct(kind):
        return combined_hashes([value_hashes(column) for column in array.flatten()], count)
    if pt.is_fixed_size_list(kind):
        size = kind.list_size
        inner = value_hashes(array.values.slice(array.offset * size, count * size))
        return _mix(
            (_at_place(inner, np.tile(np.arange(size), count))).reshape(count, size).sum(axis=1, dtype=np.uint64)
        )
    if pt.is_list(kind) or pt.is_large_list(kind):
        return _list_hashes(array)
    if pt.is_boolean(kind):
        return _mix(array.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64))
    if pt.is_primitive(kind) and kind.bit_width <= 64:
        words = np.frombuffer(array.buffers()[1], f"u{kind.bit_width // 8}")[array.offset : array.offset + count]
        return _mix(words.astype(np.uint64))
    # Types that have no shorter way (decimals, maps) are told apart by how they print.
    plain = (v if isinstance(v, str | bytes) else repr(v) for v in array.to_pylist())
    return _mix(np.fromiter(map(hash, plain), np.int64, count).view(np.uint64))


def _list_hashes(array: pa.Array) -> np.ndarray:
    """Of lists of any length: the sum over their members' hashes, each mixed with its place, and the length."""
    length = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    end = np.cumsum(length)
    inner = value_hashes(array.flatten())  # leaves out what null lists hide
    place = np.arange(len(inner)) - np.repeat(end - length, length)
    # Sums of uint64 wrap around, and so do their differences: no list needs a loop.
    running = np.concatenate([[np.uint64(0)], np.cumsum(_at_place(inner, place), dtype=np.uint64)])
    return _mix(running[end] - running[end - length] + _mix(length.astype(np.uint64)))


def _at_place(hashes: np.ndarray, place: np.ndarray) -> np.ndarray:
    return _mix(hashes + _STEP * (place.astype(np.uint64) + np.uint64(1)))


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, fig. 15), which is a bijection."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
