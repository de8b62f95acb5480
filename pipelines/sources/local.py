"""Local trees: directories scanned by threads, archives and tables in them expanded, batches handed on as they fill.

A tree is what the user named, and no more: links that lead out of it are refused unless they are asked for, and what is
no regular file (pipe, socket, device) is never opened. Links within it are further names of what they lead to: a file
gets a row under each name, a directory is walked once.

Memory is bounded by the queue between the threads and the consumer, and by the directories still to do; no listing is
held. Directories come last in, first out, which keeps the second of the two small.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa

from pipelines.sources.kinds import NOT_MEDIA, SNIFF_BYTES, container_of, extension, media_type_of, skip_reason
from pipelines.sources.rows import BATCH_ROWS, AssetRows, ListingOptions, Tally, file_uri, parent_name, read_sidecar
from vfm_ops.media.local_file import check_regular, etag_of, look_behind, open_directory, open_regular

# A partial batch is handed on after this long, so that the first rows of a slow tree don't wait for a full one.
_FLUSH_S = 0.5

Expand = Callable[[str], Iterator[pa.RecordBatch]]


def add_file(
    rows: AssetRows, path: str, info: os.stat_result, options: ListingOptions, tally: Tally, within: str | None
) -> None:
    """Adds one local file that a user, list or table named, or counts why not.

    info, within: of and as `look_behind`. OSError when it is no regular file, or can't be read.
    """
    check_regular(info)
    name = os.path.basename(path)
    kind = media_type_of(name, partial(read_head, path, within))
    if kind is None:
        tally.skip(skip_reason(name))
        return
    caption = read_sidecar(path, tally, within) if options.captions == "sidecar" else None
    label = parent_name(path) if options.labels == "folder" else None
    rows.add(file_uri(path), kind, info.st_size, etag_of(info), caption=caption, label=label)


def read_head(path: str, within: str | None = None) -> bytes:
    """The first SNIFF_BYTES of a regular file. OSError as `open_regular`."""
    with os.fdopen(open_regular(path, within), "rb", buffering=0) as file:
        return file.read(SNIFF_BYTES)


def is_lake(path: str) -> bool:
    """Whether a directory is a lake of ours, whose tables are results and no sources."""
    return os.path.exists(os.path.join(path, "lake.json"))


class TreeWalk:
    """One pass over a directory tree. Iterating it starts the threads; closing the iterator stops them.

    expand: lists a container (tar, parquet, Lance table) at a local path. within: real path of the folder that links must
    not leave, or None where they may.
    """

    def __init__(
        self, root: str, options: ListingOptions, tally: Tally, expand: Expand, within: str | None = None
    ) -> None:
        self._options, self._tally, self._expand, self._within = options, tally, expand, within
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
        skipped, todo = Counter[str](), []
        label = parent_name(os.path.join(path, "_")) if self._options.labels == "folder" else None
        # Facts of entries are taken through the descriptor: they are of the directory that was checked to lie inside.
        with open_directory(path, self._within) as folder, os.scandir(path) as entries:
            for entry in entries:
                if self._stop.is_set():
                    raise _Stopped
                if entry.name.startswith("."):
                    skipped["hidden"] += 1
                    continue
                try:
                    if (task := self._entry(entry, folder, label, rows, skipped)) is not None:
                        todo.append(task)
                except OSError as e:
                    self._tally.problem(entry.path, e)
        for reason, count in skipped.items():
            self._tally.skip(reason, count)
        with self._wake:
            self._todo.extend(todo)
            self._wake.notify_all()

    def _entry(
        self, entry: os.DirEntry[str], folder: int, label: str | None, rows: _TimedRows, skipped: Counter[str]
    ) -> tuple[str, bool] | None:
        """One entry of a directory: a row, a count, or a task. OSError when it can't be read or leads out of the tree."""
        name, path = entry.name, entry.path
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        is_link = stat.S_ISLNK(info.st_mode)
        if is_link:
            if extension(name) in NOT_MEDIA:  # wherever it leads, it would not be listed
                skipped[skip_reason(name)] += 1
                return None
            info = self._behind_link(path)
        if stat.S_ISDIR(info.st_mode):
            return self._directory(path, is_link, skipped)
        if not stat.S_ISREG(info.st_mode):
            skipped["special file"] += 1
        elif container_of(name) not in (None, "lance"):
            return path, False
        elif (kind := media_type_of(name, partial(read_head, path, self._within))) is None:
            skipped[skip_reason(name)] += 1
        else:
            sidecars = self._options.captions == "sidecar"
            caption = read_sidecar(path, self._tally, self._within) if sidecars else None
            rows.add(file_uri(path), kind, info.st_size, etag_of(info), caption=caption, label=label)
        return None

    def _behind_link(self, path: str) -> os.stat_result:
        try:
            return look_behind(path, self._within)
        except FileNotFoundError as e:
            raise OSError(e.errno, "is a link to nothing") from e

    def _directory(self, path: str, is_link: bool, skipped: Counter[str]) -> tuple[str, bool] | None:
        if container_of(path) == "lance":
            return path, False
        if is_link and not self._trees.follow(path):
            skipped["link to a directory listed anyway"] += 1
            return None
        return path, True


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
