"""Objects in a store (s3://, gs://, abfs://, whatever pyarrow.fs opens): pages of a listing, filtered and sniffed.

S3 is listed page by page through boto3 where that is installed; pyarrow hands a directory over only when it is complete,
which for a flat bucket of millions means minutes before the first row.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.lake.lake import filesystem
from pipelines.sources.kinds import SNIFF_BYTES, container_of, media_type_of, skip_reason
from pipelines.sources.rows import BATCH_ROWS, TEXT_BYTES, AssetRows, ListingOptions, Tally, clean_text, parent_name
from vfm_ops.errors import UsageError

PAGE_OBJECTS = 1000  # the most that S3 gives in one answer
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class StoredObject:
    """One object: its URL, size in bytes, and identity of content (modification time in seconds, and size)."""

    uri: str
    size: int
    etag: str


@functools.lru_cache(maxsize=64)
def _store(root: str) -> pafs.FileSystem:
    return filesystem(root)[0]


def store_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem (one a bucket: opening one resolves credentials) and path within it. UsageError for unknown schemes."""
    scheme, _, rest = uri.partition("://")
    return _store(f"{scheme}://{rest.partition('/')[0]}"), rest


def stat_object(uri: str) -> StoredObject | None:
    """An object, or None where none is. OSError when the store refuses."""
    store, path = store_of(uri)
    info = store.get_file_info(path)
    return _object(uri, info) if info.type == pafs.FileType.File else None


def add_object(rows: AssetRows, uri: str, options: ListingOptions, tally: Tally) -> None:
    """Adds one object that a user or a list named, or counts why not."""
    try:
        found = stat_object(uri)
        if found is None:
            tally.problem(uri, "does not exist")
            return
        _add(rows, found, options, tally)
    except (OSError, UsageError) as e:
        tally.problem(uri, e if isinstance(e, OSError) else str(e))


def walk_store(
    uri: str, options: ListingOptions, tally: Tally, expand: Callable[[str], Iterator[pa.RecordBatch]]
) -> Iterator[pa.RecordBatch]:
    """Streams the assets under a prefix, or those that a URL with `*`, `**`, `?`, `[...]` matches.

    expand: lists a container (tar, parquet, Lance table) at a URL. Names that begin with a dot, and lakes, are left out.
    """
    root, matches = _split_pattern(uri)
    tables = _Tables(root, tally)
    with ThreadPoolExecutor(options.threads) as pool:
        for page in _pages(root):
            containers: list[str] = []
            plain: list[StoredObject] = []
            for item in page:
                inside = item.uri[len(root) :].lstrip("/")
                if not matches(item.uri) or not inside or inside.endswith("/"):
                    continue
                if (table := tables.owner(item.uri)) is not None:
                    containers += [table] if table else []
                elif any(part.startswith(".") for part in inside.split("/")):
                    tally.skip("hidden")
                elif container_of(inside) is not None:
                    containers.append(item.uri)
                else:
                    plain.append(item)
            chunks = [plain[i : i + 64] for i in range(0, len(plain), 64)]
            for batch in pool.map(lambda chunk: _add_all(chunk, options, tally), chunks):
                if batch.num_rows:
                    yield batch
            for container in containers:
                yield from expand(container)


class _Tables:
    """Objects that belong to a Lance table (PREFIX/NAME.lance/...): the table is one source, those of a lake are none."""

    def __init__(self, root: str, tally: Tally) -> None:
        self._root, self._tally = root, tally
        self._seen: dict[str, bool] = {}

    def owner(self, uri: str) -> str | None:
        """The table's URL at its first object, '' at later ones or when a lake owns it, None for other objects."""
        at = uri.find(".lance/", len(self._root))
        if at < 0:
            return None
        table = uri[: at + 6]
        folder = table.rpartition("/")[0]
        if folder not in self._seen:
            self._seen[folder] = stat_object(f"{folder}/lake.json") is not None
            self._tally.skip("lake", int(self._seen[folder]))
        if self._seen[folder] or table in self._seen:
            return ""
        self._seen[table] = False
        return table


def _add_all(items: list[StoredObject], options: ListingOptions, tally: Tally) -> pa.RecordBatch:
    rows = AssetRows()
    for item in items:
        try:
            _add(rows, item, options, tally)
        except OSError as e:
            tally.problem(item.uri, e)
        except (ValueError, pa.ArrowException) as e:  # a key that S3 has and pyarrow will not open, such as a//b
            tally.problem(item.uri, str(e).split("\n")[0])
    return rows.take()


def _add(rows: AssetRows, item: StoredObject, options: ListingOptions, tally: Tally) -> None:
    name = posixpath.basename(item.uri)
    kind = media_type_of(name, lambda: read_object(item.uri, SNIFF_BYTES))
    if kind is None:
        tally.skip(skip_reason(name))
        return
    caption = _sidecar(item.uri) if options.captions == "sidecar" else None
    label = parent_name(urlsplit(item.uri).path) if options.labels == "folder" else None
    rows.add(item.uri, kind, item.size, item.etag, caption=caption, label=label)


def read_object(uri: str, count: int) -> bytes:
    """The first bytes of an object."""
    store, path = store_of(uri)
    with store.open_input_file(path) as file:
        return file.read(count)


def _sidecar(uri: str) -> str | None:
    try:
        return clean_text(read_object(posixpath.splitext(uri)[0] + ".txt", TEXT_BYTES))
    except FileNotFoundError:
        return None


# -- listing -------------------------------------------------------------------------------------------------------


def _pages(root: str) -> Iterator[list[StoredObject]]:
    if root.startswith("s3://") and importlib.util.find_spec("boto3") is not None:
        return _s3_pages(root)
    return _directory_pages(root)


def _s3_pages(root: str) -> Iterator[list[StoredObject]]:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    client = boto3.client("s3", endpoint_url=endpoint)
    try:
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE_OBJECTS}
        ):
            yield [
                StoredObject(
                    f"s3://{bucket}/{o['Key']}", o["Size"], f"{int(o['LastModified'].timestamp())}-{o['Size']}"
                )
                for o in page.get("Contents", ())
            ]
    except (BotoCoreError, ClientError) as e:
        raise UsageError(f"cannot list {root}: {e}") from e


def _directory_pages(root: str) -> Iterator[list[StoredObject]]:
    scheme = root.partition("://")[0]
    store, path = store_of(root)
    todo = [path.rstrip("/")]
    while todo:
        infos = cast(list[Any], store.get_file_info(pafs.FileSelector(todo.pop(), allow_not_found=True)))
        todo += [i.path for i in infos if i.type == pafs.FileType.Directory]
        files = [_object(f"{scheme}://{i.path}", i) for i in infos if i.type == pafs.FileType.File]
        yield from (files[i : i + BATCH_ROWS] for i in range(0, len(files), BATCH_ROWS))


def _object(uri: str, info: Any) -> StoredObject:
    seconds = (info.mtime_ns or 0) // 1_000_000_000
    return StoredObject(uri, info.size, f"{seconds}-{info.size}")


def _split_pattern(uri: str) -> tuple[str, Callable[[str], bool]]:
    """A URL's fixed directory, with a closing slash, and which URLs under it are meant."""
    if (magic := _MAGIC.search(uri)) is None:
        return uri.rstrip("/") + "/", lambda _: True
    expression = re.compile(glob_expression(uri))
    return uri[: uri.rfind("/", 0, magic.start()) + 1], lambda name: expression.fullmatch(name) is not None


def glob_expression(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` stay within one name, `**` crosses slashes."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(p) or ("[" + p[1:-1].replace("!", "^", 1) + "]" if p[:1] == "[" and p[-1:] == "]" else re.escape(p))
        for p in parts
    )
