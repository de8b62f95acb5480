"""A bound on how long a call may take, for code of others that may hang."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vfm_ops.errors import VfmError

GRACE_S = 10.0  # after the exception, which a call into C does not see before it returns


class DeadlineExceeded(Exception):
    """A call took longer than it may."""


@contextmanager
def deadline(seconds: float | None, what: str) -> Iterator[None]:
    """Raises DeadlineExceeded in the body once it has taken so many seconds; None: never.

    A body that does not return to Python even then ends the process with exit code 3, and says so: nothing else can stop it,
    and what was committed stays. One that lets no other thread run meanwhile is not stopped. what: begins the sentence.
    """
    if seconds is None:
        yield
        return
    watch = _Watch(threading.get_ident(), seconds, what)
    watch.start()
    try:
        yield
    except DeadlineExceeded:
        raise DeadlineExceeded(f"no answer after {seconds:g} s") from None
    finally:
        watch.end()


class _Watch(threading.Thread):
    def __init__(self, thread: int, seconds: float, what: str) -> None:
        super().__init__(daemon=True, name="deadline")
        self.watched, self.seconds, self.what = thread, seconds, what
        self.lock, self.over = threading.Lock(), threading.Event()

    def run(self) -> None:
        """Waits; then interrupts; then, if that is not felt, ends the process."""
        if self.over.wait(self.seconds):
            return
        with self.lock:
            if self.over.is_set():
                return
            _raise_in(self.watched, DeadlineExceeded)
        if self.over.wait(GRACE_S):
            return
        text = (
            f"{self.what} hangs in a call that can't be interrupted, for {self.seconds:g} s: what was committed stays"
        )
        os.write(2, f"error: {text}; mend it, or raise its deadline_s\n".encode())
        os._exit(VfmError.exit_code)

    def end(self) -> None:
        """Nothing is raised from here on."""
        with self.lock:
            self.over.set()
            # One that was sent and not seen yet would come up in whatever runs next.
            _raise_in(self.watched, None)


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)
