"""A bound on how long a call may take, for code of others that may hang."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
        try:
            yield
        finally:
            watch.end()
    except DeadlineExceeded:
        watch.over.set()
        raise DeadlineExceeded(f"no answer after {seconds:g} s") from None


class _Watch(threading.Thread):
    def __init__(self, thread: int, seconds: float, what: str) -> None:
        super().__init__(daemon=True, name="deadline")
        self.watched, self.seconds, self.what = thread, seconds, what
        # Whoever takes it first decides whether the exception is sent. No lock that one waits for: the exception may come while
        # it is taken, and would leave it taken.
        self.decided = threading.Lock()
        self.sent, self.over = threading.Event(), threading.Event()

    def run(self) -> None:
        """Waits; then interrupts; then, if that is not felt, ends the process."""
        if self.over.wait(self.seconds) or not self.decided.acquire(blocking=False):
            return
        _raise_in(self.watched)
        self.sent.set()
        if self.over.wait(GRACE_S):
            return
        text = (
            f"{self.what} hangs in a call that can't be interrupted, for {self.seconds:g} s: what was committed stays"
        )
        os.write(2, f"error: {text}; mend it, or raise its deadline_s\n".encode())
        os._exit(VfmError.exit_code)

    def end(self) -> None:
        """Nothing is raised in the watched thread, which calls this, from here on."""
        if not self.decided.acquire(blocking=False):
            with suppress(DeadlineExceeded):
                # One that was sent and not seen would come up in whatever runs next. Another takes its place, and is seen here:
                # taken back instead, it would leave CPython 3.11 looking for it at every call, and under a tracer for ever.
                self.sent.wait()
                _raise_in(self.watched)
                while True:
                    time.sleep(0)
        self.over.set()


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(DeadlineExceeded))
