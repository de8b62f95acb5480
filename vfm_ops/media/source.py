"""Where an item's encoded bytes lie: a file, a byte range of a file (a tar member), an object in a store, or memory.

Whatever it is, it reads as bytes (stills) or as a seekable binary file (videos). Object stores go through pyarrow.fs,
which is imported only when a URL needs it: a decoder process that reads local files stays small.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes, urlsplit

from vfm_ops.errors import MediaError
from vfm_ops.media.local_file import SpecialFileError, check_regular, is_file_of, look_behind, open_regular, real_path

# What pyarrow.fs takes after a '?'; in any other URL it is a letter of the key.
_STORE_OPTIONS = re.compile(r"\?(region|scheme|endpoint_override|access_key|secret_key)=")


@dataclass(frozen=True)
class MediaSource:
    """One item's encoded bytes.

    uri: plain path, file:// URL, or any URL that pyarrow.fs opens (s3://, gs://, ...).
    offset, length: byte range inside it, for members of uncompressed archives; both or neither.
    data: the bytes themselves (a parquet cell, an upload); then `uri` is only a name for messages.
    etag: `etag_of` the local file when it was ingested. A path that goes through links must still lead to that very file:
    a link put there since would otherwise have us read, and show, whatever it names.
    """

    uri: str
    offset: int | None = None
    length: int | None = None
    data: bytes | None = None
    etag: str | None = None

    def __post_init__(self) -> None:
        if (self.offset is None) != (self.length is None):
            raise ValueError("a byte range needs both offset and length")
        if self.offset is not None and (self.offset < 0 or cast(int, self.length) < 0):
            raise ValueError(f"offset and length must not be negative: {self.offset}, {self.length}")

    def to_tuple(self) -> tuple[str, int | None, int | None, bytes | None, str | None]:
        """The fields, for a message (`dataclasses.astuple` copies deeply, at ten times the cost)."""
        return self.uri, self.offset, self.length, self.data, self.etag

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.uri if self.offset is None else f"{self.uri} (bytes {self.offset}+{self.length})"

    @property
    def path(self) -> str | None:
        """The local path of the file that holds the bytes, or None when they lie in a store or in memory."""
        if self.data is not None:
            return None
        if "://" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            return None
        # Names need not be Unicode: bytes come back as they were. Not parts.path: '#' and '?' are letters of a name.
        return os.fsdecode(unquote_to_bytes(self.uri.removeprefix("file://").removeprefix("localhost")))

    def size(self) -> int:
        """Encoded size in bytes. Raises MediaError('missing' | 'unreadable')."""
        if self.data is not None:
            return len(self.data)
        if self.length is not None:
            return self.length
        with _as_media_error(self):
            if self.path is not None:
                info = look_behind(self.path)
                check_regular(info)
                return info.st_size
            filesystem, inner = _filesystem(self.uri)
            size = filesystem.get_file_info(inner).size
        if size is None:
            raise MediaError("missing", f"{self.name} does not exist; check the path, or ingest again.")
        return int(size)

    def head(self, count: int = 512) -> bytes:
        """The first `count` bytes (fewer when it is shorter), enough to sniff the format."""
        if self.data is not None:
            return self.data[:count]
        with _as_media_error(self), self.open() as file:
            return file.read(count)

    def read(self, max_bytes: int) -> bytes:
        """All bytes. Raises MediaError('empty' | 'too_large' | 'missing' | 'unreadable' | 'truncated')."""
        path = None if self.offset is not None else self.path
        if path is not None:
            data = self._read_local(path, max_bytes)
        else:
            self._check(self.size(), max_bytes)
            with _as_media_error(self), self.open() as file:
                data = file.read()
        if self.length is not None and len(data) < self.length:
            raise MediaError("truncated", f"{self.name} ends after {len(data)} bytes: the archive is cut short.")
        self._check(len(data), max_bytes)
        return data

    def open(self) -> BinaryIO:
        """A seekable binary file over exactly these bytes. Raises MediaError('missing' | 'unreadable')."""
        if self.data is not None:
            return io.BytesIO(self.data)
        with _as_media_error(self):
            if self.path is not None:
                raw: Any = os.fdopen(self._open_local(self.path), "rb")
            else:
                filesystem, inner = _filesystem(self.uri)
                raw = _StoreFile(filesystem.open_input_file(inner), self)
        if self.offset is None or self.length is None:
            return cast(BinaryIO, raw)
        return cast(BinaryIO, io.BufferedReader(_ByteRange(raw, self.offset, self.length), 64 * 1024))

    @contextmanager
    def native_path(self) -> Iterator[str]:
        """A path at which FFmpeg, OpenCV or decord open the local file that was checked, even if another takes its place.

        Valid until the context ends; what was opened by then stays open. For sources whose `path` is not None. Raises
        MediaError('missing' | 'unreadable' | 'not_media' | 'changed').
        """
        path = cast(str, self.path)
        with _as_media_error(self):
            descriptor = self._open_local(path)
        try:
            name = f"/proc/self/fd/{descriptor}"
            yield name if os.path.exists(name) else path
        finally:
            os.close(descriptor)

    def _open_local(self, path: str) -> int:
        descriptor = open_regular(path)
        if (
            self.etag is not None
            and real_path(descriptor, path) != path
            and not is_file_of(os.fstat(descriptor), self.etag)
        ):
            os.close(descriptor)
            raise MediaError(
                "changed", f"{self.name} is reached through a link, and is not what was ingested: ingest it again."
            )
        return descriptor

    def _read_local(self, path: str, max_bytes: int) -> bytes:
        # One open, one read: this is the hot path of a corpus of small files.
        with _as_media_error(self):
            descriptor = self._open_local(path)
            try:
                size = os.fstat(descriptor).st_size
                self._check(size, max_bytes)
                with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                    return file.read()
            finally:
                os.close(descriptor)

    def _check(self, size: int, max_bytes: int) -> None:
        if size == 0:
            raise MediaError("empty", f"{self.name} is empty (0 bytes); copy or download it again.")
        if size > max_bytes:
            raise MediaError(
                "too_large", f"{self.name} has {size:,} bytes, over the limit of {max_bytes:,}; raise it in `limits`."
            )


class _ByteRange(io.RawIOBase):
    """A window of a seekable file, read-only."""

    def __init__(self, file: Any, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _StoreFile(io.RawIOBase):
    """An object of a store, whose failing reads name it: of a bare OSError a decoder would say that the media is damaged."""

    def __init__(self, file: Any, source: MediaSource) -> None:
        self._file, self._source = file, source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_media_error(self._source):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        with _as_media_error(self._source):
            return bytes(self._file.read(None if size < 0 else size))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _as_media_error:
    """Turns the operating system's or the store's errors into a MediaError that names the source."""

    def __init__(self, source: MediaSource) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            message = f"{self._source.name} does not exist; check the path, or ingest again."
            raise MediaError("missing", message) from error
        if isinstance(error, SpecialFileError | IsADirectoryError):
            raise MediaError(
                "not_media", f"{self._source.name} {error.strerror}; remove it, or ingest again."
            ) from error
        if isinstance(error, OSError | ValueError):  # pyarrow's word for a key that it will not open is a ValueError
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
            raise MediaError("unreadable", f"{self._source.name} can't be read: {reason}.") from error


@lru_cache(maxsize=64)
def _store(scheme_and_host: str) -> Any:
    import pyarrow.fs

    return pyarrow.fs.FileSystem.from_uri(scheme_and_host)[0]


def _filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow filesystem and the path inside it; one filesystem a bucket, since opening one resolves credentials."""
    import pyarrow as pa
    import pyarrow.fs

    try:
        if uri.startswith("file:") or _STORE_OPTIONS.search(uri):
            return pyarrow.fs.FileSystem.from_uri(uri)
        # Not urlsplit: '#' and '?' are ordinary letters of an object's key.
        scheme, _, inner = uri.partition("://")
        return _store(f"{scheme}://{inner.partition('/')[0]}"), inner
    except pa.ArrowInvalid as error:
        raise MediaError("unreadable", f"{uri} is no URL that can be opened: {error}.") from error
