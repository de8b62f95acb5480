"""Opening a video for demuxing and decoding with PyAV, and saying what is wrong when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import av.error

from vfm_ops.errors import MediaError
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import VIDEO_FORMATS, sniff
from vfm_ops.media.source import MediaSource


@contextmanager
def open_container(source: MediaSource, limits: Limits) -> Iterator[Any]:
    """An open av.container.InputContainer; closed on leaving.

    Raises MediaError('empty' | 'not_media' | 'too_large' | 'missing' | 'unreadable' | 'truncated' | 'damaged').
    """
    size = source.size()
    if size == 0:
        raise MediaError("empty", f"{source.name} is empty (0 bytes); copy or download it again.")
    if size > limits.max_bytes:
        limit = limits.max_bytes
        raise MediaError("too_large", f"{source.name} has {size:,} bytes, over limits.max_bytes = {limit:,}; raise it.")
    kind = sniff(source.head())
    if kind not in VIDEO_FORMATS:
        found = f"a {kind} image" if kind else "no image or video format that is known"
        raise MediaError("not_media", f"{source.name} is {found} by its first bytes, not a video; remove or fix it.")
    address = _address(source)
    file = source.open() if address is None else None
    try:
        # Files may only ever name files: a container that refers to the network is not followed there.
        options = {"protocol_whitelist": "file,subfile"}
        try:
            container = av.open(address or file, container_options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise _opening_error(source, kind, error) from error
        with container:
            yield container
    finally:
        if file is not None:
            file.close()


def best_video_stream(container: Any, source: MediaSource) -> Any:
    """FFmpeg's choice among the video streams; cover art does not count. Raises MediaError('no_video')."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError("no_video", f"{source.name} holds no video stream (only {', '.join(kinds)}); leave it out.")
    # One thread a process: the pool of decoder processes is the parallelism, and pixels never depend on it.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _address(source: MediaSource) -> str | None:
    """What FFmpeg opens natively (no Python in its read calls): a file, or a byte range of one."""
    if source.path is None:
        return None
    if source.offset is None or source.length is None:
        return f"file:{source.path}"
    return f"subfile,,start,{source.offset},end,{source.offset + source.length},,:file:{source.path}"


def _opening_error(source: MediaSource, kind: str, error: Exception) -> MediaError:
    if isinstance(error, MemoryError):
        message = f"{source.name} needs more memory than its decoder may use; raise limits.memory_mb if you trust it."
        return MediaError("memory", message)
    if kind == "mp4" and not _has_index(source):
        message = f"{source.name} has no index (moov): its recording or download was cut short; copy it again."
        return MediaError("truncated", message)
    reason = getattr(error, "strerror", None) or str(error)
    return MediaError("damaged", f"{source.name} starts like {kind} but can't be opened ({reason}); fetch it again.")


def _has_index(source: MediaSource) -> bool:
    """Whether an ISO file's top-level boxes include a whole `moov`."""
    size = source.size()
    with source.open() as file:
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            length = size - at if length == 0 else length
            if head[4:8] == b"moov":
                return at + length <= size
            if length < 8:
                return False
            at += length
    return False
