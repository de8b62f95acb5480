"""Tar archives and WebDataset shards: members by offset and length, from one sequential pass over the headers.

Nothing is extracted, so a member's content can't expand; what can hurt is a header that lies, and those are checked. .txt or
.json of a member's sample (samples.py) caption it, .cls labels it.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.sources.kinds import IMAGE, SNIFF_BYTES, VIDEO, container_of, extension, media_type_of, skip_reason
from pipelines.sources.rows import (
    BATCH_ROWS,
    TEXT_BYTES,
    AssetRows,
    ListingOptions,
    Tally,
    parent_name,
    printable,
    unusable_name,
)
from pipelines.sources.samples import TEXTS, Member, Naming, Sample, caption_and_label, group_samples

_FIRST_ROWS = 64  # the first rows of a slow archive don't wait for a full batch
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def list_tar(
    file: BinaryIO, size: int, uri: str, etag: str, options: ListingOptions, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Streams the assets in an uncompressed tar.

    file: the archive, seekable, read front to back. size: its bytes. uri, etag: of the archive; a member's etag is the
    archive's with its place, so that a rewritten archive is read anew. Damage ends the listing and is reported in `tally`;
    members before it are kept. Two members of one name are two assets: NAME, and `NAME (2)`.
    """
    listing = _Listing(file, uri, etag, options, tally)
    enough = _FIRST_ROWS
    for sample, naming in group_samples(_members(file, size, uri, options, tally)):
        listing.add(sample, naming)
        if len(listing.rows) >= enough:
            yield listing.rows.take()
            enough = min(4 * enough, BATCH_ROWS)
    if len(listing.rows):
        yield listing.rows.take()


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


def _members(file: BinaryIO, size: int, uri: str, options: ListingOptions, tally: Tally) -> Iterator[Member]:
    listed, at = 0, -1
    try:
        archive: Any = tarfile.TarFile(fileobj=cast(Any, _Headers(file)), mode="r", errorlevel=1)
        while (info := archive.next()) is not None:
            archive.members.clear()  # else tarfile keeps every header until the end
            if archive.offset <= at or info.size < 0:  # a size below zero leads back: round and round
                raise tarfile.ReadError(f"a header declares {info.size:,} bytes")
            at = archive.offset
            if not info.isreg() or info.sparse is not None:
                _leave_out(info, uri, tally)
                continue
            if listed == options.max_members:
                tally.problem(uri, f"more than {listed:,} members; the rest was left out (`max_members`)")
                return
            if info.offset_data + info.size > size:
                tally.problem(uri, f"is cut short: member {printable(info.name)} ends beyond the end of the archive")
                return
            if (reason := _refusal(info, options)) is not None:
                tally.problem(f"{uri}: {printable(info.name)}", reason)
                continue
            listed += 1
            yield Member(info.name, info.offset_data, info.size, _text(file, info))
        _check_end(file, archive.offset, uri, tally)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as e:
        tally.problem(uri, e if isinstance(e, OSError) else _why_unreadable(file, e))


def _leave_out(info: tarfile.TarInfo, uri: str, tally: Tally) -> None:
    """Counts a member that is no plain file; one that is a picture with holes, which can't be read in place, is a problem."""
    if info.isreg() and extension(info.name) in IMAGE | VIDEO:
        tally.problem(f"{uri}: {printable(info.name)}", "is stored sparse: pack it again without holes")
    elif not info.isdir():
        tally.skip("link or special archive member")


def _why_unreadable(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({name}), so that its members can't be addressed: unpack it to a plain .tar"
    if isinstance(error, RecursionError):
        return "is no readable tar archive: headers upon headers without a member"
    return f"is no readable tar archive: {str(error).split(chr(10))[0]}"


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
    if (reason := unusable_name(info.name)) is not None:
        return f"its name {reason}; it was left out"
    if info.size > options.max_member_bytes:
        return f"has {info.size:,} bytes, over the limit of {options.max_member_bytes:,} (`max_member_bytes`)"
    return None


def _text(file: BinaryIO, info: tarfile.TarInfo) -> bytes | None:
    if extension(info.name) not in TEXTS or info.size > TEXT_BYTES:
        return None
    file.seek(info.offset_data)
    return file.read(info.size)


class _Listing:
    """Rows of one archive, as its samples come."""

    def __init__(self, file: BinaryIO, uri: str, etag: str, options: ListingOptions, tally: Tally) -> None:
        self._file, self._uri, self._etag, self._options, self._tally = file, uri, etag, options, tally
        self.rows = AssetRows()
        self._names: set[int] = set()  # hashes: an archive may have millions
        self._again = Counter[str]()

    def add(self, sample: Sample, naming: Naming) -> None:
        """Adds the pictures and videos of a sample; counts the rest."""
        kinds = [(member, self._kind(member)) for member in sample.members]
        pictures = [member for member, kind in kinds if kind is not None]
        for member, kind in kinds:
            if kind is None:
                continue
            caption, label = caption_and_label(member, sample, naming, pictures)
            self.rows.add(
                self._uri,
                kind,
                member.size,
                f"{self._etag}@{member.offset}+{member.size}",
                member=self._unique(printable(member.name)),
                container="tar",
                offset=member.offset,
                length=member.size,
                caption=caption,
                label=label or (parent_name(member.name) if self._options.labels == "folder" else None),
            )

    def _kind(self, member: Member) -> str | None:
        base = posixpath.basename(member.name)
        if base.startswith("."):
            self._tally.skip("hidden")
        elif container_of(base) is not None:
            self._tally.skip("archive in an archive")
        elif (kind := media_type_of(base, partial(self._head, member))) is not None:
            return kind
        else:
            self._tally.skip(skip_reason(base))
        return None

    def _head(self, member: Member) -> bytes:
        self._file.seek(member.offset)
        return self._file.read(min(SNIFF_BYTES, member.size))

    def _unique(self, name: str) -> str:
        """The name, or with a number where the archive had it before: shards are joined by writers who don't look."""
        number = hash(name)
        if number not in self._names:
            self._names.add(number)
            return name
        self._again[name] += 1
        return f"{name} ({self._again[name] + 1})"
