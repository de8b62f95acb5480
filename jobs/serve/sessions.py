"""Sessions: what a server remembers between two requests, for a while and within a number."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jobs.serve.problems import Problem

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_-]{22}")


def new_session_id() -> str:
    """128 random bits, URL-safe."""
    return secrets.token_urlsafe(16)


def checked_session_id(text: str) -> str:
    """The id itself; Problem 404 for what no session was ever called."""
    if not _ID.fullmatch(text):
        raise unknown_session()
    return text


def unknown_session() -> Problem:
    """The answer to an id that is not, or no longer, open."""
    return Problem(404, "no such session", "There is no such session, or it expired: open a new one.")


class HoldsSessions:
    """What replicas that keep sessions answer alike."""

    _sessions: Sessions[Any]

    async def close(self, session: str) -> bool:
        """Forgets a session."""
        return self._sessions.remove(session)

    async def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)


class Sessions(Generic[T]):
    """Open sessions by id. Each use prolongs one; unused ones expire; when `most` are open, another is refused (429).

    close: called with a value that is forgotten. Thread-safe.
    """

    def __init__(
        self,
        most: int,
        expires_s: float,
        close: Callable[[T], None] = lambda value: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.expires_s = most, expires_s
        self._close, self._clock = close, clock
        self._open: dict[str, tuple[T, float]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def reserve(self) -> None:
        """Problem 429 when no further session fits; to be asked before anything costly is made for one."""
        self.expire()
        with self._lock:
            if len(self._open) < self.most:
                return
            soonest = min(used for _, used in self._open.values()) + self.expires_s - self._clock()
        raise Problem(
            429,
            "too many sessions",
            f"{self.most} sessions are open, which is the limit: close one, or wait for one to expire.",
            retry_after_s=max(1.0, soonest),
        )

    def add(self, key: str, value: T) -> None:
        """Opens a session under an id. Problem 429 when there are too many."""
        self.reserve()
        with self._lock:
            self._open[key] = (value, self._clock())

    def get(self, key: str) -> T:
        """The session's value; it lives for another `expires_s`. Problem 404 when it is not open."""
        self.expire()
        with self._lock:
            if key not in self._open:
                raise unknown_session()
            value, _ = self._open[key]
            self._open[key] = (value, self._clock())
            return value

    def remove(self, key: str) -> bool:
        """Closes a session. Whether there was one."""
        with self._lock:
            found = self._open.pop(key, None)
        if found is not None:
            self._close(found[0])
        return found is not None

    def expire(self) -> int:
        """Forgets sessions that were not used for `expires_s`. Returns how many."""
        now = self._clock()
        with self._lock:
            old = [key for key, (_, used) in self._open.items() if now - used >= self.expires_s]
            values = [self._open.pop(key)[0] for key in old]
        for value in values:
            self._close(value)
        return len(values)
