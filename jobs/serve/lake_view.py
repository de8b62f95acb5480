"""The lake as a server reads it: tables stay open with their caches, and every read sees the newest committed version."""

from __future__ import annotations

import threading
import time
from typing import Any

from pipelines.lake import Lake


class LakeView(Lake):
    """A lake whose tables are opened once. On a local disk each read looks for a newer version (some microseconds); on an
    object store, where looking is a request, at most every `fresh_s` seconds. Thread-safe."""

    def __init__(self, root: str, fresh_s: float | None = None) -> None:
        super().__init__(root)
        self.fresh_s = fresh_s if fresh_s is not None else (1.0 if "://" in root else 0.0)
        self._held: dict[str, tuple[Any, float]] = {}
        self._lock = threading.Lock()

    def dataset(self, table: str, version: int | str | None = None) -> Any | None:
        """As Lake.dataset; the newest version comes from the handle that is held."""
        if version is not None:
            return super().dataset(table, version)
        with self._lock:
            held, checked = self._held.get(table, (None, 0.0))
            now = time.monotonic()
            if held is None or now - checked >= self.fresh_s:
                held = self._newest(table, held)
                if held is None:
                    self._held.pop(table, None)
                else:
                    self._held[table] = (held, now)
            return held

    def forget(self) -> None:
        """Lets all handles go: the next read opens the tables anew. For a lake that was replaced as a whole."""
        with self._lock:
            self._held.clear()

    def _newest(self, table: str, held: Any | None) -> Any | None:
        if held is None:
            return super().dataset(table)
        try:
            latest = held.latest_version
        except (ValueError, OSError):
            return super().dataset(table)  # removed, or made anew under the server
        if latest == held.version:
            return held
        # Checking a version out keeps the session, and with it the caches of indices and metadata.
        return held.checkout_version(latest) if latest > held.version else super().dataset(table)
