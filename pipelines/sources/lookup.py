"""Single paths and URLs, as many as a list or a table column names: looked up by threads, in the order given."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa

from pipelines.sources.kinds import container_of
from pipelines.sources.local import add_file
from pipelines.sources.remote import add_object
from pipelines.sources.rows import (
    NAME_BYTES,
    AssetRows,
    ListingOptions,
    Tally,
    local_path,
    text_encoding,
    unusable_name,
)
from pipelines.sources.tables import PathRow, resolve_row_path
from vfm_ops.errors import UsageError
from vfm_ops.media.local_file import look_behind, open_regular

_CHUNK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

ListOne = Callable[[str], Iterator[pa.RecordBatch]]


def look_up(
    paths: Iterable[PathRow], options: ListingOptions, tally: Tally, expand: ListOne, within: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Streams the assets of named files: one stat each, missing ones reported.

    expand: lists a container or directory. within: real path of the folder that local files must lie in, links followed.
    """
    with ThreadPoolExecutor(options.threads) as pool:
        for chunks in _windows(_windows(paths, _CHUNK), options.threads):
            for batch, nested in pool.map(lambda chunk: _look_up_chunk(chunk, options, tally, within), chunks):
                if batch.num_rows:
                    yield batch
                for path in nested:
                    yield from expand(path)


def _look_up_chunk(
    chunk: list[PathRow], options: ListingOptions, tally: Tally, within: str | None
) -> tuple[pa.RecordBatch, list[str]]:
    rows, nested = _Annotated(), list[str]()
    for item in chunk:
        rows.annotate(item.caption, item.label)
        path = local_path(item.path)
        try:
            if (reason := unusable_name(path)) is not None:
                tally.problem(path, reason)
            elif path.startswith(("http://", "https://")):
                tally.problem(path, "is a web address: download it first")
            elif "://" in path:
                if container_of(path) is not None:
                    nested.append(path)
                else:
                    add_object(rows, path, options, tally)
            else:
                info = look_behind(path, within)
                if stat.S_ISDIR(info.st_mode) or container_of(path) is not None:
                    nested.append(path)
                else:
                    add_file(rows, path, info, options, tally, within)
        except OSError as e:
            tally.problem(path, e)
        except (ValueError, pa.ArrowException, UsageError) as e:  # what a store makes of a hostile key
            tally.problem(path, str(e).split("\n")[0])
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

    UTF-8, or UTF-16 as its first bytes tell. A line longer than any name is handed on cut, so that it is refused as an
    item. UsageError when the list can't be read.
    """
    here = os.path.abspath(path)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            encoding = text_encoding(file.read(512))
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        with open(open_regular(path), encoding=encoding, errors=errors, newline="\n") as lines:
            while line := lines.readline(4 * NAME_BYTES):
                while not line.endswith("\n") and (rest := lines.readline(4 * NAME_BYTES)):
                    line = line[: 4 * NAME_BYTES] + rest[-1:]
                if name := line.rstrip("\r\n"):
                    yield PathRow(resolve_row_path(name, here), None, None)
    except OSError as e:
        raise UsageError(f"cannot read the list {path}: {e.strerror}") from e


def expand_pattern(pattern: str) -> Iterator[PathRow]:
    """Local files and directories that a glob matches, hidden ones not; {000..123} counts.

    `**` stands for any folders, links to folders not among them: those of a loop would be visited without end.
    """
    for name in expand_range(pattern):
        if glob.has_magic(name):
            folder, segments = split_pattern(os.path.abspath(name))
            yield from (PathRow(p, None, None) for p in _matches(folder, segments))
        else:
            yield PathRow(os.path.abspath(name), None, None)


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """A local glob's fixed folder, and the segments that follow it."""
    segments = pattern.split("/")
    fixed = next((i for i, s in enumerate(segments[:-1]) if glob.has_magic(s) or _RANGE.search(s)), len(segments) - 1)
    return "/".join(segments[:fixed]) or "/", segments[fixed:]


def _matches(folder: str, segments: list[str]) -> Iterator[str]:
    segment, rest = segments[0], segments[1:]
    if not glob.has_magic(segment):
        path = os.path.join(folder, segment)
        if rest:
            yield from _matches(path, rest)
        elif os.path.lexists(path):
            yield path
        return
    if segment == "**":
        yield from _matches(folder, rest or ["*"])
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and not segment.startswith("."):
                continue
            if segment == "**":
                if rest and entry.is_dir(follow_symlinks=False):
                    yield from _matches(entry.path, segments)
            elif fnmatch.fnmatchcase(entry.name, segment):
                if not rest:
                    yield entry.path
                elif entry.is_dir():
                    yield from _matches(entry.path, rest)


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
