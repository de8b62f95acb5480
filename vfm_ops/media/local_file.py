"""Opening local files that others named or placed: every one that holds media, a caption or a list goes through here.

What a path leads to may change at any moment, so nothing is looked at by its path and opened afterwards: it is opened
first, without ever waiting for a pipe or a device, and then looked at through the descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# Looks at what a path leads to without opening it: no wait, no side effect on a device, no permission to read needed.
_LOOK = os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ROUNDING_NS = 2_000_000_000
_KERNEL_TREES = ("/proc", "/sys", "/sys/kernel/tracing", "/sys/kernel/debug", "/sys/kernel/security", "/sys/fs/cgroup")


class SpecialFileError(OSError):
    """A pipe, socket, device, or view of the kernel's (/proc) where a file should be: opening it may wait for ever."""


class OutsideError(OSError):
    """A path that leads out of the folder that bounds it."""


def open_regular(path: str, within: str | None = None) -> int:
    """A descriptor of a regular file, for reading; the caller closes it.

    within: a real path (`os.path.realpath`) of a folder that must hold the file that was opened, whatever links led there.
    Raises SpecialFileError, OutsideError, IsADirectoryError, and OSError for what else the system says; never waits.
    """
    descriptor = _open(path, _OPEN)
    try:
        check_regular(os.fstat(descriptor))
        _check_within(descriptor, path, within)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def look_behind(path: str, within: str | None = None) -> os.stat_result:
    """Facts on whatever a path leads to, through links: a file, directory, pipe, ... It isn't opened.

    Raises OutsideError as `open_regular`, and OSError for what else the system says (nothing there, a loop of links).
    """
    descriptor = _open(path, _LOOK)
    try:
        _check_within(descriptor, path, within)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_directory(path: str, within: str | None = None) -> Iterator[int]:
    """A descriptor of a directory, to which names can be looked up (`dir_fd`) though its path be replaced meanwhile.

    Raises OutsideError as `open_regular`, and OSError.
    """
    descriptor = _open(path, _OPEN | os.O_DIRECTORY)
    try:
        _check_within(descriptor, path, within)
        yield descriptor
    finally:
        os.close(descriptor)


def check_regular(info: os.stat_result) -> None:
    """Raises SpecialFileError or IsADirectoryError for what is no regular file of an ordinary file system."""
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a file")
    for is_kind, name in _KINDS:
        if is_kind(info.st_mode):
            raise SpecialFileError(errno.EINVAL, f"is {name}, not a file")
    if info.st_dev in _kernel_devices():
        raise SpecialFileError(errno.EINVAL, "is a view of the kernel's state, not a file")


def real_path(descriptor: int, path: str) -> str:
    """Where an open file lies, free of links. path: the one it was opened by, for systems that can't tell."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.path.realpath(path)


def lies_within(real: str, folder: str) -> bool:
    """Whether a real path is a folder, or inside it."""
    return real == folder or real.startswith(folder.rstrip("/") + "/")


def etag_of(info: os.stat_result) -> str:
    """Identity of a local file's content: modification time in nanoseconds, and size."""
    return f"{info.st_mtime_ns}-{info.st_size}"


def is_file_of(info: os.stat_result, etag: str) -> bool:
    """Whether a file is the one that had this `etag_of`. Nodes that mount a disk each in their way round its times."""
    time, _, size = etag.rpartition("-")
    return size == str(info.st_size) and abs(int(time) - info.st_mtime_ns) < _ROUNDING_NS


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except ValueError as error:  # a NUL, or a surrogate that stands for no byte
        raise OSError(errno.EINVAL, "no file can have this name") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise SpecialFileError(errno.EINVAL, "is a socket or device, not a file") from error
        raise


def _check_within(descriptor: int, path: str, within: str | None) -> None:
    if within is None:
        return
    real = real_path(descriptor, path)
    if not lies_within(real, within):
        raise OutsideError(errno.EXDEV, f"leads out of {within}, to {real}")


@lru_cache(maxsize=1)
def _kernel_devices() -> frozenset[int]:
    """Devices of the file systems whose files are the kernel's: some of them wait for ever, or have no end."""
    devices = set[int]()
    for tree in _KERNEL_TREES:
        with suppress(OSError):
            if os.path.ismount(tree):
                devices.add(os.stat(tree).st_dev)
    return frozenset(devices)
