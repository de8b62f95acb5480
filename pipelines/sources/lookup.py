"""Single paths and URLs, as many as a list or a table column names: looked up by threads, in the order given."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipelines.sources.kinds import container_of
from pipelines.sources.local import add_file
from pipelines.sources.remote import add_object
from pipelines.sources.rows import AssetRows, ListingOptions, Tally, local_path
from pipelines.sources.tables import PathRow, resolve_row_path
from vfm_ops.errors import UsageError

_CHUNK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

ListOne = Callable[[str], Iterator[pa.RecordBatch]]


def look_up(
    paths: Iterable[PathRow], options: ListingOptions, tally: Tally, expand: ListOne
) -> Iterator[pa.RecordBatch]:
    """Streams the assets of named files: one stat each, missing ones reported. expand: lists a container or directory."""
    with ThreadPoolExecutor(options.threads) as pool:
        for chunks in _windows(_windows(paths, _CHUNK), options.threads):
            for batch, nested in pool.map(lambda chunk: _look_up_chunk(chunk, options, tally), chunks):
                if batch.num_rows:
                    yield batch
                for path in nested:
                    yield from expand(path)


def _look_up_chunk(chunk: list[PathRow], options: ListingOptions, tally: Tally) -> tuple[pa.RecordBatch, list[str]]:
    rows, nested = _Annotated(), list[str]()
    for item in chunk:
        rows.annotate(item.caption, item.label)
        path = local_path(item.path)
        if container_of(path) is not None:
            nested.append(path)
        elif path.startswith(("http://", "https://")):
            tally.problem(path, "is a web address: download it first")
        elif "://" in path:
            add_object(rows, path, options, tally)
        elif os.path.isdir(path):
            nested.append(path)
        else:
            add_file(rows, path, options, tally)
    return rows.take(), nested


class _Annotated(AssetRows):
    """Rows whose caption and label come from the table that named them, where it has any."""

    def annotate(self, caption: str | None, label: str | None) -> None:
        """Of the rows added from now on."""
        self._annotation = caption, label

    def add(self, *values, caption=None, label=None, **named) -> None:  # type: ignore[no-untyped-def]
        """As AssetRows.add."""
        own_caption, own_label = self._annotation
        super().add(*values, caption=own_caption or caption, label=own_label or label, **named)


def read_list(path: str) -> Iterator[PathRow]:
    """Paths and URLs of a list file, one a line; relative ones start at the list's own directory. Streams.

    UsageError when it can't be read.
    """
    here = os.path.abspath(path)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield PathRow(resolve_row_path(name, here), None, None)
    except OSError as e:
        raise UsageError(f"cannot read the list {path}: {e.strerror}") from e


def expand_pattern(pattern: str) -> Iterator[PathRow]:
    """Local files and directories that a glob matches, `**` included, hidden ones not; {000..123} counts."""
    for name in expand_range(pattern):
        if glob.has_magic(name):
            yield from (PathRow(os.path.abspath(p), None, None) for p in glob.iglob(name, recursive=True))
        else:
            yield PathRow(os.path.abspath(name), None, None)


def expand_range(pattern: str) -> Iterator[str]:
    """`shard-{000..002}.tar` -> shard-000.tar, shard-001.tar, shard-002.tar: how WebDataset names its shards."""
    if (match := _RANGE.search(pattern)) is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        head, tail = pattern[: match.start()], pattern[match.end() :]
        yield from (f"{head}{number:0{len(first)}}{rest}" for rest in expand_range(tail))


def _windows(items: Iterable, size: int) -> Iterator[list]:
    window: list = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
