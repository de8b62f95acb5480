"""Opening a video for demuxing and decoding with PyAV, and saying what is wrong when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import av
import av.error
import av.logging

from vfm_ops.errors import MediaError
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import VIDEO_FORMATS, sniff
from vfm_ops.media.source import MediaSource

# How often reading goes on after an error: a damaged stretch costs a few, and a demuxer that never moves ends.
_READ_ERRORS = 32
# Some demuxers and decoders (Matroska, FLV; FFV1) only log what is wrong, even when they are asked to be strict. The level
# makes FFmpeg call back, and `av.logging.Capture` takes what it says; nothing is printed.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
# What `ffmpeg -err_detect explode` asks for, and checksums. Without it decoders paint over what they can't read, and no
# one is told.
STRICT = {"err_detect": "crccheck+explode"}


@contextmanager
def open_container(
    source: MediaSource, limits: Limits, strict: bool = False, errors: list[str] | None = None
) -> Iterator[Any]:
    """An open av.container.InputContainer; closed on leaving. strict: its demuxer gives up rather than pass over anything.
    errors: collects what the demuxer, which reads ahead here, passes over.

    Raises MediaError('empty' | 'not_media' | 'too_large' | 'missing' | 'unreadable' | 'truncated' | 'damaged').
    """
    size = source.size()
    if size == 0:
        raise MediaError("empty", f"{source.name} is empty (0 bytes); copy or download it again.")
    if size > limits.max_bytes:
        limit = limits.max_bytes
        raise MediaError("too_large", f"{source.name} has {size:,} bytes, over decode.max_bytes = {limit:,}; raise it.")
    kind = sniff(source.head())
    if kind not in VIDEO_FORMATS:
        found = f"a {kind} image" if kind else "no image or video format that is known"
        raise MediaError("not_media", f"{source.name} is {found} by its first bytes, not a video; remove or fix it.")
    held = ExitStack()  # the descriptor of what FFmpeg opens
    address = held.enter_context(_address(source))
    file = source.open() if address is None else None
    try:
        # Files may only ever name files: a container that refers to the network is not followed there.
        options = {"protocol_whitelist": "file,subfile"}
        try:
            options |= STRICT if strict else {}
            with av.logging.Capture() as heard:
                container = av.open(address or file, container_options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise _opening_error(source, kind, error) from error
        with container:
            if errors is not None:  # decoders, which are tried here from the middle of groups too, are not meant
                errors += [message.strip() for _, name, message in heard if name == container.format.name]
            yield container
    finally:
        held.close()
        if file is not None:
            file.close()


def best_video_stream(container: Any, source: MediaSource) -> Any:
    """FFmpeg's choice among the video streams that are no still pictures. Raises MediaError('no_video' | 'unsupported').

    Its decoder reports every error, rather than show what it makes up.
    """
    best = container.streams.best("video")
    moving = [s for s in container.streams.video if not s.disposition & _STILL]
    stream = best if best in moving else next(iter(moving), None)
    if stream is None:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError("no_video", f"{source.name} holds no video stream (only {', '.join(kinds)}); leave it out.")
    if stream.codec_context is None:
        raise MediaError("unsupported", f"{source.name} is of a codec that this build can't decode; re-encode it.")
    # One thread a process: the pool of decoder processes is the parallelism, and pixels never depend on it.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    stream.codec_context.options = STRICT
    return stream


def read_packets(container: Any, stream: Any, errors: list[str] | None = None) -> Iterator[Any]:
    """The stream's packets from where the container stands, past stretches that can't be read.

    errors: collects what was passed over. The probe and every decoder read by this one function, so that the n-th packet
    is the same packet to both.
    """
    for _ in range(_READ_ERRORS):
        try:
            packets = container.demux(stream)
            while True:
                with av.logging.Capture() as heard:
                    packet = next(packets, None)
                if heard and errors is not None:
                    errors.append(heard[0][2].strip())
                if packet is None:
                    return
                if packet.size or packet.pts is not None or packet.dts is not None:  # else the flush at the end
                    yield packet
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            if errors is not None:
                errors.append(getattr(error, "strerror", None) or str(error))


_STILL = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails


@contextmanager
def _address(source: MediaSource) -> Iterator[str | None]:
    """What FFmpeg opens natively (no Python in its read calls): a file, or a byte range of one; None when it is neither."""
    if source.path is None:
        yield None
        return
    with source.native_path() as path:
        if source.offset is None or source.length is None:
            yield f"file:{path}"
        else:
            yield f"subfile,,start,{source.offset},end,{source.offset + source.length},,:file:{path}"


def _opening_error(source: MediaSource, kind: str, error: Exception) -> MediaError:
    if isinstance(error, MemoryError):
        message = f"{source.name} needs more memory than its decoder may use; raise decode.memory_mb if you trust it."
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
