"""Rows of `assets` under construction, the options that shape them, and the tally of what was left out."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa

from pipelines.lake.schema import SCHEMAS, make_asset_id
from vfm_ops.errors import UsageError

# `discovered_at` is the moment of the commit, which a listing does not know.
LISTED = pa.schema([f for f in SCHEMAS["assets"] if f.name != "discovered_at"])
BATCH_ROWS = 4096
TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class ListingOptions:
    """How sources are listed.

    captions: `sidecar` (NAME.txt beside NAME.jpg) or `column:NAME` (of parquet and Lance sources).
    labels: `folder` (name of the parent directory) or `column:NAME`.
    column: column of a parquet or Lance source that holds encoded bytes, or paths; found by itself when None.
    max_members, max_member_bytes: limits on one archive; the rest of it is reported, not listed.
    threads: directories and archives that are listed at once.
    """

    captions: str | None = None
    labels: str | None = None
    column: str | None = None
    max_members: int = 10_000_000
    max_member_bytes: int = 64 << 30
    threads: int = 8

    def __post_init__(self) -> None:
        for name, value, word in (("captions", self.captions, "sidecar"), ("labels", self.labels, "folder")):
            if value is not None and value != word and not (value.startswith("column:") and value[7:]):
                raise UsageError(f"--{name} takes {word} or column:NAME, not {value!r}")
        if min(self.max_members, self.max_member_bytes, self.threads) < 1:
            raise UsageError("limits on archives and the number of threads must be above zero")

    @property
    def caption_column(self) -> str | None:
        """Column of a table source that holds captions."""
        return self.captions[7:] if self.captions and self.captions.startswith("column:") else None

    @property
    def label_column(self) -> str | None:
        """Column of a table source that holds labels."""
        return self.labels[7:] if self.labels and self.labels.startswith("column:") else None


@dataclass
class Tally:
    """What a listing left out, counted from many threads. `problems` keeps the first messages, `unreadable` counts all."""

    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    keep: int = 20
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def skip(self, reason: str, count: int = 1) -> None:
        """Counts items that are no assets, by reason."""
        if count:
            with self._lock:
                known = reason in self.skipped or len(self.skipped) < self.keep * 5
                self.skipped[reason if known else "other"] += count

    def problem(self, where: str, reason: str | BaseException) -> None:
        """Counts something that should have been listed and could not be."""
        if isinstance(reason, OSError):
            reason = reason.strerror or str(reason).split("\n")[0]
        with self._lock:
            self.unreadable += 1
            if len(self.problems) < self.keep:
                self.problems.append(f"{printable(where)}: {reason}")


class AssetRows:
    """Rows of `assets` that grow until `take` makes a record batch (schema LISTED) of them."""

    def __init__(self) -> None:
        self._rows: list[tuple] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        uri: str,
        media_type: str | None,
        size: int | None,
        etag: str,
        *,
        member: str | None = None,
        container: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        caption: str | None = None,
        label: str | None = None,
    ) -> None:
        """Adds one asset. uri and member are valid Unicode (`file_uri`, `printable`); sizes and offsets are bytes."""
        asset_id = make_asset_id(uri, member)
        self._rows.append((asset_id, uri, member, container, offset, length, media_type, size, etag, caption, label))

    def take(self) -> pa.RecordBatch:
        """The rows so far, which are then forgotten."""
        columns = list(zip(*self._rows)) if self._rows else [()] * len(LISTED)
        self._rows = []
        arrays = [pa.array(values, field.type) for values, field in zip(columns, LISTED)]
        return pa.RecordBatch.from_arrays(arrays, schema=LISTED)


def file_uri(path: str) -> str:
    """What `assets.uri` says of a local file: its absolute path, or a file:// URL where the name is not valid Unicode.

    A name of arbitrary bytes reaches Python with surrogates, which no Arrow string can hold.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(path.encode("utf-8", "surrogateescape"))
    return path


def local_path(uri: str) -> str:
    """The path that a plain path or a file:// URL names; the opposite of `file_uri`."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if uri.startswith("file:///") else uri


def printable(name: str) -> str:
    """The name with bytes that are not Unicode written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_sidecar(path: str) -> str | None:
    """Text of NAME.txt beside NAME.ext, without surrounding blanks; None where there is none."""
    try:
        with open(os.path.splitext(path)[0] + ".txt", "rb") as file:
            return clean_text(file.read(TEXT_BYTES))
    except OSError:
        return None


def clean_text(data: bytes) -> str | None:
    """A caption or label from a file's bytes; None when nothing is in it."""
    return data.decode("utf-8", "replace").strip() or None


def parent_name(path: str) -> str | None:
    """Name of the directory that holds a file or member."""
    return printable(Path(path).parent.name) or None
