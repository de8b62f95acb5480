"""Local trees: directories scanned by threads, archives and tables in them expanded, batches handed on as they fill.

Memory is bounded by the queue between the threads and the consumer, and by the directories still to do; no listing is
held. Directories come last in, first out, which keeps the second of the two small.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa

from pipelines.sources.kinds import COMPRESSED_TAR, SNIFF_BYTES, container_of, extension, media_type_of
from pipelines.sources.rows import BATCH_ROWS, AssetRows, ListingOptions, Tally, file_uri, parent_name, read_sidecar

# A partial batch is handed on after this long, so that the first rows of a slow tree don't wait for a full one.
_FLUSH_S = 0.5

Expand = Callable[[str], Iterator[pa.RecordBatch]]


def etag_of(stat: os.stat_result) -> str:
    """Identity of a local file's content: modification time in nanoseconds, and size."""
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def add_file(rows: AssetRows, path: str, options: ListingOptions, tally: Tally) -> None:
    """Adds one local file that a user or a list named, or counts why not."""
    name = os.path.basename(path)
    try:
        stat = os.stat(path)
        kind = media_type_of(name, partial(read_head, path))
    except OSError as e:
        tally.problem(path, e)
        return
    if kind is None:
        tally.skip(_skip_reason(name))
        return
    caption = read_sidecar(path) if options.captions == "sidecar" else None
    label = parent_name(path) if options.labels == "folder" else None
    rows.add(file_uri(path), kind, stat.st_size, etag_of(stat), caption=caption, label=label)


def read_head(path: str) -> bytes:
    """The first SNIFF_BYTES of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.read(SNIFF_BYTES)


def is_lake(path: str) -> bool:
    """Whether a directory is a lake of ours, whose tables are results and no sources."""
    return os.path.exists(os.path.join(path, "lake.json"))


class TreeWalk:
    """One pass over a directory tree. Iterating it starts the threads; closing the iterator stops them.

    expand: lists a container (tar, parquet, Lance table) at a local path.
    """

    def __init__(self, root: str, options: ListingOptions, tally: Tally, expand: Expand) -> None:
        self._options, self._tally, self._expand = options, tally, expand
        self._todo: list[tuple[str, bool]] = [(root, True)]  # path, and whether it is a directory
        self._running = 0
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._out: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(maxsize=16)
        self._trees = _FollowedTrees(root)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._options.threads)]
        for worker in workers:
            worker.start()
        try:
            left = len(workers)
            while left:
                item = self._out.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            with self._wake:
                self._stop.set()
                self._wake.notify_all()
            for worker in workers:
                worker.join()

    # -- threads ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        rows = _TimedRows(self._put)
        try:
            while (task := self._next(rows)) is not None:
                path, is_directory = task
                try:
                    if is_directory:
                        self._scan(path, rows)
                    else:
                        for batch in self._expand(path):
                            self._put(batch)
                except OSError as e:
                    self._tally.problem(path, e)
                finally:
                    with self._wake:
                        self._running -= 1
                        self._wake.notify_all()
            rows.flush()
            self._put(None)
        except _Stopped:
            return
        except BaseException as e:  # the consumer raises it
            self._stop_with(e)

    def _next(self, rows: _TimedRows) -> tuple[str, bool] | None:
        with self._wake:
            if not self._todo and len(rows):
                self._wake.release()
                try:
                    rows.flush()  # before waiting, however few
                finally:
                    self._wake.acquire()
            while not self._todo and self._running and not self._stop.is_set():
                self._wake.wait()
            if self._stop.is_set():
                raise _Stopped
            if not self._todo:
                return None
            self._running += 1
            return self._todo.pop()

    def _put(self, item: pa.RecordBatch | None) -> None:
        while not self._stop.is_set():
            try:
                return self._out.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped

    def _stop_with(self, error: BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._out.put(error, timeout=0.2)
            except queue.Full:
                continue

    # -- one directory ---------------------------------------------------------------------------------------------

    def _scan(self, path: str, rows: _TimedRows) -> None:
        if is_lake(path):
            self._tally.skip("lake")
            return
        options, skipped, todo = self._options, Counter[str](), []
        label = parent_name(os.path.join(path, "_")) if options.labels == "folder" else None
        sidecars = options.captions == "sidecar"
        with os.scandir(path) as entries:
            for entry in entries:
                if self._stop.is_set():
                    raise _Stopped
                name = entry.name
                if name.startswith("."):
                    skipped["hidden"] += 1
                    continue
                try:
                    if entry.is_dir():
                        if (task := self._directory(entry, skipped)) is not None:
                            todo.append(task)
                    elif container_of(name) not in (None, "lance"):
                        todo.append((entry.path, False))
                    elif not entry.is_file():
                        self._odd(entry, skipped)
                    elif (kind := media_type_of(name, partial(read_head, entry.path))) is None:
                        skipped[_skip_reason(name)] += 1
                    else:
                        stat = entry.stat()
                        caption = read_sidecar(entry.path) if sidecars else None
                        rows.add(file_uri(entry.path), kind, stat.st_size, etag_of(stat), caption=caption, label=label)
                except OSError as e:
                    self._tally.problem(entry.path, e)
        for reason, count in skipped.items():
            self._tally.skip(reason, count)
        with self._wake:
            self._todo.extend(todo)
            self._wake.notify_all()

    def _directory(self, entry: os.DirEntry[str], skipped: Counter[str]) -> tuple[str, bool] | None:
        if container_of(entry.name) == "lance":
            return entry.path, False
        if entry.is_symlink() and not self._trees.follow(entry.path):
            skipped["link to a directory listed anyway"] += 1
            return None
        return entry.path, True

    def _odd(self, entry: os.DirEntry[str], skipped: Counter[str]) -> None:
        if entry.is_symlink() and not os.path.exists(entry.path):
            self._tally.problem(entry.path, "is a link to nothing")
        else:
            skipped["special file"] += 1


class _Stopped(Exception):
    """The consumer has gone: a thread unwinds."""


class _TimedRows(AssetRows):
    """Rows that hand themselves on when a batch is full, or has waited for _FLUSH_S."""

    def __init__(self, put: Callable[[pa.RecordBatch], None]) -> None:
        super().__init__()
        self._put, self._since = put, time.monotonic()

    def add(self, *values, **named) -> None:  # type: ignore[no-untyped-def]
        """As AssetRows.add; may hand the rows on."""
        super().add(*values, **named)
        count = len(self)
        if count >= BATCH_ROWS or (count % 64 == 0 and time.monotonic() - self._since > _FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Hands on what there is."""
        if len(self):
            self._put(self.take())
        self._since = time.monotonic()


class _FollowedTrees:
    """Which links to directories are followed: those that lead out of all trees walked so far, and around none of them.

    A link into a walked tree would list its files twice; one to a parent of a walked tree would never end.
    """

    def __init__(self, root: str) -> None:
        self._lock = threading.Lock()
        self._roots: set[str] = set()
        self._above: set[str] = set()
        self._add(os.path.realpath(root))

    def follow(self, path: str) -> bool:
        """Whether to walk the link at path; if so, its target counts as walked from then on."""
        target = os.path.realpath(path)
        with self._lock:
            if target in self._above or any(t in self._roots for t in (target, *_parents(target))):
                return False
            self._add(target)
            return True

    def _add(self, target: str) -> None:
        self._roots.add(target)
        self._above.update(_parents(target))


def _parents(path: str) -> list[str]:
    parents = []
    while (up := os.path.dirname(path)) != path:
        parents.append(up)
        path = up
    return parents


def _skip_reason(name: str) -> str:
    if name.lower().endswith(COMPRESSED_TAR):
        return "compressed archive"
    ext = extension(name)
    return f".{ext}" if ext and ext.isascii() and len(ext) <= 12 else "no known extension"
