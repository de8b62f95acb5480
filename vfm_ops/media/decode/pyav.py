"""Planned decoding with PyAV: jump over groups nobody wants, skip unreferenced pictures, keep what precedes damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from vfm_ops.errors import MediaError
from vfm_ops.media.container import best_video_stream, open_container
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import DecodePlan
from vfm_ops.media.probe import Probe
from vfm_ops.media.source import MediaSource

THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 27, 48
# Reading past this many packets costs less than a seek, which starts a fresh read of the file.
_READ_ON = 64
# Decoders that leave out exactly the unreferenced pictures, packet by packet (dav1d settles it once, when it opens).
_SKIPPING_CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "msmpeg4", "msmpeg4v2", "vc1", "wmv3"}
)


class DecodedFrame:
    """One picture still in the decoder's colours; converting costs as much as decoding, so it happens on demand."""

    def __init__(self, index: int, picture: Any, rotation: int, reformatter: Any) -> None:
        self.index = index
        self._picture, self._turns, self._reformatter = picture, rotation // 90, reformatter

    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), upright, contiguous."""
        pixels = self._reformatter.reformat(self._picture, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels

    def thumbnail(self) -> np.ndarray:
        """uint8 (27, 48, 3), upright, aspect ratio ignored: scaled bicubically straight from the decoder's colours.

        That is what `ffmpeg -s 48x27 -pix_fmt rgb24` does, with which TransNetV2 was trained.
        """
        height, width = THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH
        if self._turns % 2:
            height, width = width, height
        scaled = self._reformatter.reformat(self._picture, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        small = scaled.to_ndarray()
        return np.rot90(small, self._turns) if self._turns else small


class PyAVDecoder:
    """Follows a DecodePlan through one open file."""

    def __init__(self, source: MediaSource, probe: Probe, plan: DecodePlan, limits: Limits) -> None:
        self._source, self._probe, self._plan, self._limits = source, probe, plan, limits

    def frames(self, tick: Callable[[], None] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(frame index, upright RGB) of the wanted frames, ascending. See `pictures` for errors."""
        for frame in self.pictures(tick):
            yield frame.index, frame.rgb()

    def pictures(self, tick: Callable[[], None] | None = None) -> Iterator[DecodedFrame]:
        """The wanted frames, unconverted, ascending. tick: called once a packet.

        Frames before any damage are yielded first; then MediaError('truncated' | 'damaged') is raised.
        """
        source, given = self._source, 0
        to_rgb, to_thumbnail = VideoReformatter(), VideoReformatter()
        with open_container(source, self._limits) as container:
            walk = _Walk(container, best_video_stream(container, source), self._probe, self._plan, tick)
            try:
                for index, picture in walk.wanted_pictures():
                    self._limits.check_size(picture.width, picture.height, source.name)
                    given += 1
                    yield DecodedFrame(index, picture, self._probe.rotation, _Reformatters(to_rgb, to_thumbnail))
            except av.error.FFmpegError as error:
                raise self._damage(given, error) from error
        self._check_complete(given)

    def _damage(self, given: int, error: Exception) -> MediaError:
        if isinstance(error, MemoryError):
            message = f"{self._source.name} needs more memory than its decoder may use; raise limits.memory_mb."
            return MediaError("memory", message)
        kind = "truncated" if self._probe.cut_short else "damaged"
        reason = getattr(error, "strerror", None) or str(error)
        kept = f"the {given} wanted frames before the damage are kept" if given else "no wanted frame could be decoded"
        return MediaError(kind, f"{self._source.name} is {kind} ({reason}): {kept}; fetch it again for the rest.")

    def _check_complete(self, given: int) -> None:
        probe, wanted = self._probe, len(self._plan.wanted)
        if probe.cut_short:
            message = f"{self._source.name} ends at {probe.duration_s:.2f} s, before its header says (truncated): "
            raise MediaError("truncated", message + f"{given} wanted frames are kept; fetch it again for the rest.")
        # Where frames are counted as they come, the decoder may rightly show fewer than there are packets.
        if given < wanted and (probe.ordered or not given):
            message = f"{self._source.name}: {wanted - given} of {wanted} wanted frames could not be decoded; "
            raise MediaError("damaged", message + "the others are kept; fetch it again for the rest.")


class _Reformatters:
    """One scaler per purpose, since a scaler rebuilds its tables whenever the size it scales to changes."""

    def __init__(self, full: Any, small: Any) -> None:
        self._full, self._small = full, small

    def reformat(self, picture: Any, width: int | None = None, *args: Any, **named: Any) -> Any:
        scaler = self._full if width is None else self._small
        return scaler.reformat(picture, width, *args, **named)


class _Walk:
    """A walk over packets in decoding order, from run to run of a plan."""

    def __init__(self, container: Any, stream: Any, probe: Probe, plan: DecodePlan, tick: Any) -> None:
        self._container, self._stream, self._probe, self._plan, self._tick = container, stream, probe, plan, tick
        self._position = 0
        self._shown = 0
        self._packets = container.demux(stream)
        shown = np.flatnonzero(probe.packet_rank >= 0)
        self._packet_of_rank = np.empty(probe.frame_count, np.int64)
        self._packet_of_rank[probe.packet_rank[shown]] = shown
        self._last_rank = -1

    def wanted_pictures(self) -> Iterator[tuple[int, Any]]:
        """(frame index, av.VideoFrame), ascending."""
        context, wanted = self._stream.codec_context, self._plan.needed
        last = int(self._plan.wanted[-1]) if len(self._plan.wanted) else -1
        runs = list(zip(self._plan.starts.tolist(), self._plan.stops.tolist()))
        may_skip = self._probe.ordered and context.name in _SKIPPING_CODECS
        for number, (start, stop) in enumerate(runs):
            skipping = False
            for position, packet in self._run(start, stop):
                skip = may_skip and not wanted[position]
                if skip != skipping:
                    context.skip_frame, skipping = ("NONREF" if skip else "DEFAULT"), skip
                yield from self._keep(context.decode(packet))
                if self._last_rank == last:
                    return
            context.skip_frame = "DEFAULT"
            yield from self._keep(context.decode(None))
            if number + 1 < len(runs):
                context.flush_buffers()

    def _run(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """(position, packet) for start <= position < stop."""
        if start - self._position > _READ_ON and self._probe.ordered:
            self._seek(start)
        for packet in self._packets:
            if packet.pts is None and packet.dts is None and packet.size == 0:
                return  # the demuxer's flush: the file ended earlier than when it was probed
            position = self._position
            self._position += 1
            if self._tick is not None:
                self._tick()
            if position >= start:
                yield position, packet
            if self._position >= stop:
                return

    def _seek(self, start: int) -> None:
        """Continue from a packet at or before `start`; from the file's first when the container can't tell."""
        rank = int(self._probe.packet_rank[start])
        if rank >= 0:
            time = int(self._probe.pts[rank])
            for offset in (time, time - 2 * self._span()):
                if self._land(offset, start):
                    return
        self._container.seek(int(self._probe.pts[0]) - self._span(), stream=self._stream)
        self._packets, self._position = self._container.demux(self._stream), 0

    def _span(self) -> int:
        """Ticks that decoding order may run ahead of showing order: sixteen frames, H.264's largest delay."""
        pts = self._probe.pts
        return int(16 * (pts[-1] - pts[0]) // max(1, len(pts) - 1)) + 1

    def _land(self, offset: int, start: int) -> bool:
        self._container.seek(offset, stream=self._stream)
        packets = self._container.demux(self._stream)
        for tried, packet in enumerate(packets):
            position = None if packet.pts is None else self._position_of(packet.pts)
            if position is not None:
                if position > start:
                    return False
                self._packets, self._position = _chain(packet, packets), position
                return True
            if tried > 256:
                return False
        return False

    def _position_of(self, pts: int) -> int | None:
        rank = self._rank_of(pts)
        return None if rank is None else int(self._packet_of_rank[rank])

    def _rank_of(self, pts: int) -> int | None:
        rank = int(np.searchsorted(self._probe.pts, pts))
        return rank if rank < self._probe.frame_count and self._probe.pts[rank] == pts else None

    def _keep(self, pictures: list[Any]) -> Iterator[tuple[int, Any]]:
        for picture in pictures:
            if self._probe.ordered:
                rank = None if picture.pts is None else self._rank_of(picture.pts)
            else:
                rank = self._shown if self._shown < self._probe.frame_count else None
            self._shown += 1
            if rank is None or rank <= self._last_rank or not self._plan.needed[self._packet_of_rank[rank]]:
                continue
            if picture.is_corrupt:
                raise av.error.InvalidDataError(0, "a frame is damaged")
            self._last_rank = rank
            yield rank, picture


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
