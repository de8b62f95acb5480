"""What a SRC argument is, and its listing: a directory, a glob, a file, a list of files, an archive, a table, a URL."""

from __future__ import annotations

import errno
import glob
import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.sources.kinds import COMPRESSED_TAR, container_of
from pipelines.sources.local import TreeWalk, is_lake
from pipelines.sources.lookup import expand_pattern, look_up, read_list, split_pattern
from pipelines.sources.remote import stat_object, store_of, walk_store
from pipelines.sources.rows import ListingOptions, Tally, file_uri, local_path
from pipelines.sources.tables import PathRow, list_lance, list_parquet, resolve_row_path
from pipelines.sources.tar import list_tar
from vfm_ops.errors import UsageError
from vfm_ops.media.local_file import OutsideError, etag_of, open_regular

# Headers lie a member apart: a big buffer makes small members one sequential read, and a store's reads few.
_LOCAL_BUFFER, _STORE_BUFFER = 64 << 10, 4 << 20

Kind = Literal["tree", "files", "list", "pattern", "container", "store"]


@dataclass(frozen=True)
class Source:
    """One SRC: kind says how it is listed. text: as the user wrote it; paths: absolute, or URLs."""

    kind: Kind
    text: str
    paths: tuple[str, ...]


def resolve_sources(texts: Iterable[str], lists: Iterable[str] = ()) -> list[Source]:
    """Checks every source before anything is written. Files named one by one become one source.

    texts: SRC arguments; `@FILE` is a list. lists: further list files. UsageError for what is missing, unreadable or of no use.
    """
    sources: list[Source] = []
    files: list[str] = []
    for text in [*texts, *(f"@{path}" for path in lists)]:
        found = _resolve(text)
        if found.kind == "files":
            files += found.paths
        else:
            sources.append(found)
    return sources + ([Source("files", ", ".join(files[:3]), tuple(files))] if files else [])


def list_source(source: Source, options: ListingOptions, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Streams a source's assets as record batches of schema LISTED; counts what it leaves out in `tally`."""

    # What a pattern finds is bounded by its fixed folder; what the user spells out, here or in a list, by nothing.
    within = None
    if source.kind == "pattern" and not options.allow_outside:
        within = os.path.realpath(split_pattern(source.paths[0])[0])

    def expand(path: str) -> Iterator[pa.RecordBatch]:
        return _list_place(path, options, tally, within)

    match source.kind:
        case "tree" | "store" | "container":
            return _list_place(source.paths[0], options, tally)
        case "pattern":
            return look_up(expand_pattern(source.paths[0]), options, tally, expand, within)
        case "list":
            return look_up(read_list(source.paths[0]), options, tally, expand)
        case "files":
            return look_up((PathRow(p, None, None) for p in source.paths), options, tally, expand)


def _resolve(text: str) -> Source:
    if not text:
        raise UsageError("a source is empty: name a directory, file, list, archive or URL")
    if text.startswith("@") and not os.path.lexists(text):
        return _resolve_list(text)
    path = local_path(text) if text.startswith("file://") else text
    if "://" in path:
        return _resolve_url(path)
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(path):
        return _resolve_directory(text, path)
    if os.path.exists(path):
        if not os.access(path, os.R_OK):
            raise UsageError(f"{text} can't be read: permission denied")
        return _resolve_file(text, path)
    if glob.has_magic(text) or re.search(r"\{\d+\.\.\d+\}", text):
        if next(expand_pattern(path), None) is None:
            raise UsageError(f"nothing matches {text}")
        return Source("pattern", text, (path,))
    raise UsageError(f"{text} does not exist")


def _resolve_list(text: str) -> Source:
    path = os.path.abspath(os.path.expanduser(text[1:]))
    next(read_list(path), None)  # says what is wrong with it
    return Source("list", text, (path,))


def _resolve_directory(text: str, path: str) -> Source:
    if is_lake(path):
        raise UsageError(f"{text} is a lake: name one of its tables, such as {text.rstrip('/')}/frames.lance")
    try:
        with os.scandir(path):
            pass
    except OSError as e:
        raise UsageError(f"{text} can't be read: {e.strerror}") from e
    if container_of(path) == "lance" or os.path.isdir(os.path.join(path, "_versions")):
        return Source("container", text, (path,))
    return Source("tree", text, (path,))


def _resolve_file(text: str, path: str) -> Source:
    if path.lower().endswith(COMPRESSED_TAR):
        raise UsageError(f"{text} is a compressed archive, whose members can't be addressed: unpack it to a plain .tar")
    if container_of(path) is not None:
        return Source("container", text, (path,))
    return Source("files", text, (path,))


def _resolve_url(url: str) -> Source:
    if url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is a web address: download it, and name the file")
    if re.search(r"[*?\[]", url):
        return Source("store", url, (url,))
    try:
        store, path = store_of(url)
        info = store.get_file_info(path.rstrip("/"))
    except (OSError, pa.ArrowException) as e:
        raise UsageError(f"cannot open {url}: {str(e).split(chr(10))[0]}") from e
    if info.type == pafs.FileType.NotFound:
        raise UsageError(f"{url} does not exist, or its store does not show it to you")
    if info.type == pafs.FileType.File:
        found = _resolve_file(url, url)
        return Source(found.kind, url, (url,))
    return Source("container" if container_of(url.rstrip("/")) == "lance" else "store", url, (url.rstrip("/"),))


# -- one place ---------------------------------------------------------------------------------------------------------


def _list_place(
    path: str, options: ListingOptions, tally: Tally, within: str | None = None
) -> Iterator[pa.RecordBatch]:
    """A directory, a prefix, or a container, by path or URL.

    within: real path of the folder that what lies on this machine must not leave; None: the place itself, as it was named.
    """
    remote = "://" in path
    container = container_of(posixpath.basename(path.rstrip("/")))
    if container is None and not remote and os.path.isdir(os.path.join(path, "_versions")):
        container = "lance"
    if container is not None:
        return _list_container(path, container, options, tally, within)
    if not (remote or within or options.allow_outside):
        within = os.path.realpath(path)

    def expand(inner: str) -> Iterator[pa.RecordBatch]:
        return _list_place(inner, options, tally, within)

    return walk_store(path, options, tally, expand) if remote else iter(TreeWalk(path, options, tally, expand, within))


def _list_container(
    path: str, container: str, options: ListingOptions, tally: Tally, within: str | None
) -> Iterator[pa.RecordBatch]:
    try:
        if container == "lance":
            found = list_lance(path, options, tally, within)
            yield from _with_paths(found, path, options, tally, within)
            return
        file, size, etag = _open(path, within)
        uri = path if "://" in path else file_uri(path)
        with file:
            if container == "tar":
                yield from list_tar(file, size, uri, etag, options, tally)
            else:
                found = list_parquet(file, uri, etag, options, tally)
                yield from _with_paths(found, path, options, tally, within)
    except (OSError, ValueError, pa.ArrowException, UsageError) as e:  # of one container among many
        tally.problem(path, e if isinstance(e, OSError) else str(e).split("\n")[0])


def _open(path: str, within: str | None) -> tuple[BinaryIO, int, str]:
    if "://" not in path:
        file = os.fdopen(open_regular(path, within), "rb", buffering=_LOCAL_BUFFER)
        info = os.fstat(file.fileno())
        return file, info.st_size, etag_of(info)
    found = stat_object(path)
    if found is None:
        raise FileNotFoundError(f"{path} does not exist")
    store, inner = store_of(path)
    raw = cast(io.RawIOBase, store.open_input_file(inner))
    return cast(BinaryIO, io.BufferedReader(raw, _STORE_BUFFER)), found.size, found.etag


def _with_paths(
    found: Iterator[pa.RecordBatch | list[PathRow]],
    path: str,
    options: ListingOptions,
    tally: Tally,
    within: str | None,
) -> Iterator[pa.RecordBatch]:
    """Batches as they are; paths, which start at the table's own directory, looked up like those of a list.

    A table is data, and often somebody else's: a file that it names must lie in its directory, or in the tree it is of.
    """
    remote = "://" in path
    if not (remote or within or options.allow_outside):
        within = os.path.realpath(os.path.dirname(path))

    def refuse(inner: str) -> Iterator[pa.RecordBatch]:
        tally.problem(inner, f"is named by {path}, where only single files may be: name it as a source of its own")
        return iter(())

    def resolved(rows: list[PathRow]) -> Iterator[PathRow]:
        for row in rows:
            name = resolve_row_path(row.path, path)
            if remote and not options.allow_outside and "://" not in local_path(name):
                tally.problem(name, OutsideError(errno.EXDEV, f"is a file of this machine, named by {path}"))
            else:
                yield PathRow(name, row.caption, row.label)

    for item in found:
        if isinstance(item, list):
            yield from look_up(resolved(item), options, tally, refuse, within)
        else:
            yield item
