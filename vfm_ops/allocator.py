"""What the C allocator keeps and gives back: left alone, glibc's has a heap for each thread that ever ran, and returns large
blocks that the next frame wants again."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """All threads that start from now on allocate from one heap. Streaming 2 million vectors then peaks 700 MB lower, and as
    fast: the work is in large matrix products, between which there is little to contend for. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Returns freed memory to the system: what reading millions of rows leaves in the allocators is more than work needs."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Lets the allocator reuse blocks of a few MB from frame to frame.

    glibc returns blocks above a threshold to the system when they are freed, and a frame's worth of page faults then costs
    a third of the time of eight objects. The threshold follows the largest block of up to 32 MB that was ever freed, so
    that one is freed here (it is never touched); at most twice as much then stays with the process.
    """
    import torch

    block = torch.empty(31 << 20, dtype=torch.uint8)
    del block
