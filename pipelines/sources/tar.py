"""Tar archives and WebDataset shards: members by offset and length, from one sequential pass over the headers.

Nothing is extracted, so a member's content can't expand; what can hurt is a header that lies, and those are checked.
WebDataset: members of one sample lie together and share their name up to the first dot; .txt or .json among them
captions the sample, .cls labels it.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.sources.kinds import SNIFF_BYTES, container_of, extension, media_type_of
from pipelines.sources.rows import (
    BATCH_ROWS,
    TEXT_BYTES,
    AssetRows,
    ListingOptions,
    Tally,
    clean_text,
    parent_name,
    printable,
)

# Members of one sample; a shard that is a flat folder without dots in names must not be held as one sample.
SAMPLE_MEMBERS = 64
_FIRST_ROWS = 64  # the first rows of a slow archive don't wait for a full batch
_TEXTS = frozenset({"txt", "cls", "json"})
_BLOCK = 512


def list_tar(
    file: BinaryIO, size: int, uri: str, etag: str, options: ListingOptions, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Streams the assets in an uncompressed tar.

    file: the archive, seekable, read front to back. size: its bytes. uri, etag: of the archive; a member's etag is the
    archive's with its place, so that a rewritten archive is read anew. Damage ends the listing and is reported in `tally`;
    members before it are kept.
    """
    rows, enough = AssetRows(), _FIRST_ROWS
    for sample in _samples(_members(file, size, uri, options, tally)):
        _add_sample(rows, sample, file, uri, etag, options, tally)
        if len(rows) >= enough:
            yield rows.take()
            enough = min(4 * enough, BATCH_ROWS)
    if len(rows):
        yield rows.take()


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int
    text: bytes | None

    @property
    def key(self) -> str:
        """What the members of one WebDataset sample share."""
        folder, base = posixpath.split(self.name)
        return posixpath.join(folder, base.partition(".")[0])


class _Headers:
    """File object for tarfile that refuses a name or attribute record of absurd size: it would be read into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """At most TEXT_BYTES; raises tarfile.ReadError when more are asked for."""
        if not 0 <= count <= TEXT_BYTES:
            raise tarfile.ReadError(f"a header declares {count:,} bytes of names")
        return self._file.read(count)


def _members(file: BinaryIO, size: int, uri: str, options: ListingOptions, tally: Tally) -> Iterator[_Member]:
    listed = 0
    try:
        archive: Any = tarfile.TarFile(fileobj=cast(Any, _Headers(file)), mode="r", errorlevel=1)
        while (info := archive.next()) is not None:
            archive.members.clear()  # else tarfile keeps every header until the end
            if not info.isreg() or info.sparse is not None:
                if not info.isdir():
                    tally.skip("link or special archive member")
                continue
            if listed == options.max_members:
                tally.problem(uri, f"more than {listed:,} members; the rest was left out (--max-members)")
                return
            if info.offset_data + info.size > size:
                tally.problem(uri, f"is cut short: member {printable(info.name)} ends beyond the end of the archive")
                return
            if (reason := _refusal(info, options)) is not None:
                tally.problem(f"{uri}: {printable(info.name)}", reason)
                continue
            listed += 1
            yield _Member(info.name, info.offset_data, info.size, _text(file, info))
        _check_end(file, archive.offset, uri, tally)
    except (tarfile.TarError, OSError, ValueError) as e:
        tally.problem(uri, e if isinstance(e, OSError) else f"is no readable tar archive: {str(e).split(chr(10))[0]}")


def _check_end(file: BinaryIO, offset: int, uri: str, tally: Tally) -> None:
    """Past its first header tarfile takes damage for the end; a whole archive ends in blocks of zeros."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        tally.problem(uri, f"is cut short: it has no end mark after {offset:,} bytes; members before that are kept")
    elif block.strip(b"\0"):
        tally.problem(uri, f"is damaged at byte {offset:,}; members before that are kept")


def _refusal(info: tarfile.TarInfo, options: ListingOptions) -> str | None:
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "its name leaves the archive's folder; it was left out"
    if info.size > options.max_member_bytes:
        return f"has {info.size:,} bytes, over the limit of {options.max_member_bytes:,} (--max-member-bytes)"
    return None


def _text(file: BinaryIO, info: tarfile.TarInfo) -> bytes | None:
    if extension(info.name) not in _TEXTS or info.size > TEXT_BYTES:
        return None
    file.seek(info.offset_data)
    return file.read(info.size)


def _samples(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Runs of neighbouring members with the same key."""
    sample: list[_Member] = []
    for member in members:
        if sample and (member.key != sample[0].key or len(sample) == SAMPLE_MEMBERS):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _add_sample(
    rows: AssetRows,
    sample: list[_Member],
    file: BinaryIO,
    uri: str,
    etag: str,
    options: ListingOptions,
    tally: Tally,
) -> None:
    caption, label = _annotations(sample)
    for member in sample:
        base = posixpath.basename(member.name)
        if base.startswith("."):
            tally.skip("hidden")
        elif container_of(base) is not None:
            tally.skip("archive in an archive")
        elif (kind := media_type_of(base, partial(_head, file, member))) is None:
            tally.skip(f".{extension(base)}" if extension(base) else "no extension")
        else:
            rows.add(
                uri,
                kind,
                member.size,
                f"{etag}@{member.offset}+{member.size}",
                member=printable(member.name),
                container="tar",
                offset=member.offset,
                length=member.size,
                caption=caption,
                label=label or (parent_name(member.name) if options.labels == "folder" else None),
            )


def _head(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(SNIFF_BYTES, member.size))


def _annotations(sample: list[_Member]) -> tuple[str | None, str | None]:
    caption = label = None
    for member in sample:
        if member.text is None:
            continue
        match extension(member.name):
            case "txt":
                caption = clean_text(member.text)
            case "cls":
                label = clean_text(member.text)
            case "json":
                found = _from_json(member.text)
                caption, label = caption or found[0], label or found[1]
    return caption, label


def _from_json(data: bytes) -> tuple[str | None, str | None]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(record, dict):
        return None, None

    def first(*names: str) -> str | None:
        values = (record.get(name) for name in names)
        return next((str(v).strip() for v in values if isinstance(v, str | int) and str(v).strip()), None)

    return first("caption", "text"), first("label", "cls", "class")
