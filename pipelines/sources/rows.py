"""Rows of `assets` under construction, the options that shape them, and the tally of what was left out."""

from __future__ import annotations

import codecs
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa

from pipelines.lake.schema import SCHEMAS, make_asset_id
from vfm_ops.errors import UsageError
from vfm_ops.media.local_file import OutsideError, open_regular

# `discovered_at` is the moment of the commit, which a listing does not know.
LISTED = pa.schema([f for f in SCHEMAS["assets"] if f.name not in ("discovered_at", "asset_no")])
BATCH_ROWS = 4096
TEXT_BYTES = 1 << 20
NAME_BYTES = 4096  # the longest path that a system opens, and more than any store's longest key
_SHOWN = 240  # characters of a name in a message


@dataclass(frozen=True)
class ListingOptions:
    """How sources are listed.

    captions: `sidecar` (NAME.txt beside NAME.jpg) or `column:NAME` (of parquet and Lance sources).
    labels: `folder` (name of the parent directory) or `column:NAME`.
    column: column of a parquet or Lance source that holds encoded bytes, or paths; found by itself when None.
    max_members, max_member_bytes: limits on one archive; the rest of it is reported, not listed.
    threads: directories and archives that are listed at once.
    allow_outside: takes local files outside a source that its links or tables lead to; else they are refused. What the
    user names, as a source or in a list, is taken wherever it lies.
    """

    captions: str | None = None
    labels: str | None = None
    column: str | None = None
    max_members: int = 10_000_000
    max_member_bytes: int = 64 << 30
    threads: int = 8
    allow_outside: bool = False

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
    """What a listing left out, counted from many threads.

    skipped: no media, by reason. refused: what leaves its source, by reason. unreadable: what should have been listed and
    could not be. problems: the first messages on the latter two; notes: on the first.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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
        if isinstance(reason, OutsideError):
            return self.refuse("outside its source", where, f"{reason.strerror}; `allow_outside=True` takes it")
        if isinstance(reason, OSError):
            reason = reason.strerror or str(reason).split("\n")[0]
        with self._lock:
            self.unreadable += 1
            self._say(where, str(reason))

    def refuse(self, kind: str, where: str, reason: str) -> None:
        """Counts something that must not be listed, such as a link out of its source. kind: groups the count."""
        with self._lock:
            self.refused[kind] += 1
            self._say(where, reason)

    def note(self, where: str, reason: str) -> None:
        """Says something about an item that `skip` counts."""
        with self._lock:
            if len(self.notes) < self.keep:
                self.notes.append(f"{shown(where)}: {shown(reason, 4 * _SHOWN)}")

    @property
    def left_out(self) -> int:
        """What is no part of the lake though it may be media: unreadable or refused."""
        return self.unreadable + self.refused.total()

    def _say(self, where: str, reason: str) -> None:
        if len(self.problems) < self.keep:
            self.problems.append(f"{shown(where)}: {shown(reason, 4 * _SHOWN)}")


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
        """Adds one asset. uri and member are valid Unicode (`file_uri`, `printable`); sizes and offsets are bytes.

        A caption or label may come from anywhere: what Arrow can't hold is mended, and the rest of an absurd one cut.
        """
        asset_id = make_asset_id(uri, member)
        caption, label = _valid_text(caption), _valid_text(label)
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
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode("utf-8", "backslashreplace").decode()


def shown(name: str, most: int = _SHOWN) -> str:
    """A name for a message on a terminal: without control characters, which could rewrite it, and of bounded length."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", _escaped, printable(name))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def unusable_name(path: str) -> str | None:
    """Why no file or object can have this path or URL, or None. Names in lists and tables are anybody's."""
    if "\0" in path:
        return "holds a NUL character, which no name can"
    try:
        length = len(os.fsencode(path)) if "://" not in path else len(path.encode())
    except UnicodeEncodeError:
        return "is no valid Unicode"
    return f"has {length:,} bytes, more than any name" if length > NAME_BYTES else None


def read_sidecar(path: str, tally: Tally, within: str | None = None) -> str | None:
    """Text of NAME.txt (or NAME.TXT) beside NAME.ext, without surrounding blanks; None where there is none to be read.

    within: as `open_regular`; a caption that lies elsewhere is refused, and counted.
    """
    stem, ext = os.path.splitext(path)
    for ending in (".TXT", ".txt") if ext.isupper() else (".txt",):
        try:
            with os.fdopen(open_regular(stem + ending, within), "rb") as file:
                return clean_text(file.read(TEXT_BYTES))
        except OutsideError as e:
            tally.problem(stem + ending, e)
        except OSError:
            continue
    return None


# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_encoding(head: bytes) -> str:
    """Encoding of a text by its byte order mark; without one UTF-16 when every other byte is zero, else UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    pairs = len(head) // 2
    if pairs >= 2 and head[1 : 2 * pairs : 2].count(0) * 4 >= 3 * pairs > 4 * head[: 2 * pairs : 2].count(0):
        return "utf-16-le"
    if pairs >= 2 and head[: 2 * pairs : 2].count(0) * 4 >= 3 * pairs > 4 * head[1 : 2 * pairs : 2].count(0):
        return "utf-16-be"
    return "utf-8"


def clean_text(data: bytes) -> str | None:
    """A caption or label from a file's bytes, UTF-8 or UTF-16; None when nothing is in it."""
    return data.decode(text_encoding(data[:512]), "replace").strip().strip("\0") or None


def _valid_text(text: str | None) -> str | None:
    if text is None:
        return None
    data = text.encode("utf-8", "replace")  # a lone surrogate, as JSON may spell one, becomes a question mark
    return data[:TEXT_BYTES].decode("utf-8", "ignore")


def parent_name(path: str) -> str | None:
    """Name of the directory that holds a file or member."""
    return printable(Path(path).parent.name) or None
