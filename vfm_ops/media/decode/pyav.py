"""Planned decoding with PyAV: jump over groups nobody wants, skip unreferenced pictures, keep what precedes damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import av
import av.error
import av.logging
import cv2
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter

from vfm_ops.errors import MediaError
from vfm_ops.media.container import best_video_stream, open_container, read_packets
from vfm_ops.media.limits import Limits
from vfm_ops.media.orientation import Orientation
from vfm_ops.media.plan import DecodePlan
from vfm_ops.media.probe import HIDDEN, UNDECODABLE, Probe
from vfm_ops.media.shots import SMALL_HEIGHT, SMALL_WIDTH
from vfm_ops.media.source import MediaSource

# Reading past this many packets costs less than a seek, which starts a fresh read of the file.
_READ_ON = 64
# Decoders that leave out exactly the unreferenced pictures, packet by packet (dav1d settles it once, when it opens).
_SKIPPING_CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "msmpeg4", "msmpeg4v2", "vc1", "wmv3"}
)


class DecodedFrame:
    """One picture still in the decoder's colours; converting costs as much as decoding, so it happens on demand."""

    def __init__(self, index: int, picture: Any, orientation: Orientation, reformatter: Any) -> None:
        self.index = index
        self._picture, self._orientation, self._reformatter = picture, orientation, reformatter
        self._rgb: np.ndarray | None = None

    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), upright, contiguous."""
        if self._rgb is None:
            pixels = self._reformatter.reformat(self._picture, format="rgb24", threads=1).to_ndarray()
            self._rgb = self._orientation.upright(pixels)
        return self._rgb

    def wide_thumbnail(self, width: int, height: int) -> np.ndarray:
        """uint8 (height, width, 3), upright: the whole picture shrunk between its pixels, without smoothing.

        That is what PySceneDetect does (cv2.resize, INTER_LINEAR) before its detectors compare frames.
        """
        rgb = self.rgb()
        if rgb.shape[:2] == (height, width):
            return rgb
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)

    def thumbnail(self) -> np.ndarray:
        """uint8 (27, 48, 3), upright, aspect ratio ignored: scaled bicubically straight from the decoder's colours.

        That is what `ffmpeg -s 48x27 -pix_fmt rgb24` does, with which TransNetV2 was trained.
        """
        height, width = SMALL_HEIGHT, SMALL_WIDTH
        if self._orientation.swaps_sides:
            height, width = width, height
        scaled = self._reformatter.reformat(self._picture, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        return self._orientation.upright(scaled.to_ndarray())


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

        Frames that damage did not reach are yielded first, those after it too; then MediaError('truncated' | 'damaged')
        is raised.
        """
        given, damage, last_rank = 0, "", -1
        scalers = _Reformatters(VideoReformatter(), VideoReformatter())
        for in_order in self._readings():
            with open_container(self._source, self._limits) as container:
                stream = best_video_stream(container, self._source)
                walk = _Walk(container, stream, self._probe, self._plan, last_rank, tick)
                try:
                    for index, picture in walk.in_order() if in_order else walk.groups():
                        self._limits.check_size(picture.width, picture.height, self._source.name)
                        given += 1
                        yield DecodedFrame(index, picture, self._probe.orientation, scalers)
                except av.error.FFmpegError as error:
                    if in_order or isinstance(error, MemoryError):
                        raise self._error(given, error) from error
            last_rank, damage = walk.last_rank, walk.damage
            if walk.is_complete:
                break
        self._check_complete(given, damage)

    def _readings(self) -> tuple[bool, ...]:
        """Whether to read in order: at once, or when groups alone did not show all.

        Entered in the middle, a decoder may lack what a picture refers to (H.264 has such open groups), and a seek may go
        astray. Read in order, neither can be: what fails then is damage.
        """
        plan = self._plan
        if not len(plan.wanted):
            return ()
        whole = len(plan.starts) == 1 and plan.starts[0] <= self._probe.first_key
        return (True,) if whole or self._probe.damage else (False, True)

    def _error(self, given: int, error: Exception) -> MediaError:
        if isinstance(error, MemoryError):
            message = f"{self._source.name} needs more memory than its decoder may use; raise decode.memory_mb."
            return MediaError("memory", message)
        return self._damaged(given, getattr(error, "strerror", None) or str(error))

    def _damaged(self, given: int, reason: str) -> MediaError:
        kind, wanted = ("truncated" if self._probe.cut_short else "damaged"), len(self._plan.wanted)
        kept = f"{given} of {wanted} wanted frames are kept" if given else "no wanted frame could be decoded"
        return MediaError(kind, f"{self._source.name} is {kind} ({reason}): {kept}; fetch it again for the rest.")

    def _check_complete(self, given: int, damage: str) -> None:
        probe, missing = self._probe, len(self._plan.wanted) - given
        if damage or probe.damage:
            raise self._damaged(given, damage or probe.damage)
        if probe.cut_short:
            raise self._damaged(given, f"it ends at {probe.duration_s:.2f} s, before its header says")
        # Where frames are counted as they come, the decoder may rightly show fewer than there are packets.
        if missing and (probe.ordered or not given):
            raise self._damaged(given, f"{missing} wanted frames never came out of the decoder")


class _Reformatters:
    """One scaler per purpose, since a scaler rebuilds its tables whenever the size it scales to changes."""

    def __init__(self, full: Any, small: Any) -> None:
        self._full, self._small = full, small

    def reformat(self, picture: Any, width: int | None = None, *args: Any, **named: Any) -> Any:
        scaler = self._full if width is None else self._small
        return scaler.reformat(picture, width, *args, **named)


class _Walk:
    """One reading of a file, in decoding order. A picture is known by the number of its packet, which travels through the
    decoder in the place of a time: times may repeat, jump, or be those of other packets.

    last_rank: the frame that was given last. damage: what could not be decoded, in a few words; empty where all was sound.
    """

    def __init__(self, container: Any, stream: Any, probe: Probe, plan: DecodePlan, last_rank: int, tick: Any) -> None:
        self._container, self._stream, self._probe, self._plan, self._tick = container, stream, probe, plan, tick
        self._context, self._mode = stream.codec_context, "DEFAULT"
        # While it skips, H.264's decoder says nothing of a packet that holds no picture at all, which others refer to.
        self._may_skip = probe.ordered and not probe.damage and self._context.name in _SKIPPING_CODECS
        self._packets, self._position = read_packets(container, stream), 0
        self._shown = 0
        self._second_opinion = _SECOND_OPINIONS.get(self._context.name, _NoOpinion)()
        self._spoilt = range(0)  # packets whose pictures damage may have reached
        self._stale = False
        self.last_rank = last_rank
        self.damage = ""

    @property
    def is_complete(self) -> bool:
        return self.last_rank >= int(self._plan.wanted[-1])

    def groups(self) -> Iterator[tuple[int, Any]]:
        """(frame index, av.VideoFrame) of the wanted frames, from run to run of the plan. Raises FFmpegError."""
        for start, stop in zip(self._plan.starts.tolist(), self._plan.stops.tolist()):
            yield from self._group(start, stop)

    def _group(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        if start - self._position > _READ_ON and self._probe.seekable:
            self._seek(start)
        entered = int(self._probe.packet_rank[start])
        for position, packet in self._until(stop):
            rank = int(self._probe.packet_rank[position])
            # Pictures that lead the keyframe refer to the group before, which this decoder has not seen.
            if position < start or rank == UNDECODABLE or HIDDEN < rank < entered:
                continue
            pictures, complaint = self._decode(packet, position)
            if complaint:
                raise av.error.InvalidDataError(0, complaint)
            yield from self._intact(pictures)
            if self.is_complete:
                return
        self._set_skipping(False)
        yield from self._intact(self._context.decode(None))
        self._context.flush_buffers()

    def _intact(self, pictures: list[Any]) -> Iterator[tuple[int, Any]]:
        for picture in pictures:
            if picture.is_corrupt:
                raise av.error.InvalidDataError(0, "a frame is damaged")
            yield from self._keep(picture)

    def in_order(self) -> Iterator[tuple[int, Any]]:
        """The same, decoding everything from the first keyframe on. What can't be decoded costs the frames up to the next
        keyframe, and is noted. Where frames are counted as they come out, nobody knows the numbers of those behind it.
        """
        for position, packet in self._until(int(self._plan.stops[-1])):
            if position in self._spoilt or self._lacks_reference(position):
                continue
            try:
                if self._stale:
                    yield from self._drain()
                    self._context.flush_buffers()
                    self._stale = False
                pictures, complaint = self._decode(packet, position)
                if complaint:
                    self._mark(position, av.error.InvalidDataError(0, complaint))
            except av.error.FFmpegError as error:
                self._mark(position, error)
                pictures = []
            yield from self._sound(pictures)
            if self.is_complete or (self.damage and not self._probe.ordered):
                break
        yield from self._drain()

    def _lacks_reference(self, position: int) -> bool:
        """Whether a packet refers to what comes before the file's start, or, where decoding went on after damage, leads
        the keyframe there."""
        rank, fresh = self._probe.packet_rank, self._spoilt.stop
        if position < self._probe.first_key or rank[position] == UNDECODABLE:
            return True
        return 0 < fresh < position and HIDDEN < rank[position] < rank[fresh]

    def _mark(self, position: int, error: Exception) -> None:
        """Damage at a packet: it and the rest of its group are left out."""
        if isinstance(error, MemoryError):
            raise error
        rank = int(self._probe.packet_rank[position])
        seconds = f" at {self._probe.pts_s[rank]:.2f} s" if self._probe.ordered and rank >= 0 else ""
        self.damage = self.damage or (getattr(error, "strerror", None) or str(error)) + seconds
        later = np.flatnonzero(self._probe.packet_key[position + 1 :])
        stop = position + 1 + int(later[0]) if len(later) else len(self._probe.packet_key)
        self._spoilt, self._stale = range(position, stop), True

    def _drain(self) -> Iterator[tuple[int, Any]]:
        self._set_skipping(False)
        try:
            pictures = self._context.decode(None)
        except av.error.FFmpegError as error:
            self._mark(max(0, self._position - 1), error)
            return
        yield from self._sound(pictures)

    def _sound(self, pictures: list[Any]) -> Iterator[tuple[int, Any]]:
        """Those of the decoder's pictures that no damage has reached: what is left out is one stretch of time."""
        ranks = self._probe.packet_rank
        for picture in pictures:
            number = picture.pts if picture.pts is not None else self._position - 1
            if picture.is_corrupt and number not in self._spoilt:
                self._mark(number, av.error.InvalidDataError(0, "a frame is damaged"))
            behind = number < self._spoilt.stop and ranks[number] >= ranks[self._spoilt.start]
            if number not in self._spoilt and not (behind and self._probe.ordered):
                yield from self._keep(picture)

    def _decode(self, packet: Any, position: int) -> tuple[list[Any], str]:
        """The pictures that come out when a packet goes in, and what the decoder has to say against that packet."""
        self._set_skipping(self._may_skip and not self._plan.needed[position])
        packet.pts = packet.dts = position
        with av.logging.Capture() as heard:
            pictures = self._context.decode(packet)
            complaint = self._second_opinion(packet, pictures)
        return pictures, complaint or (heard[0][2].strip() if heard else "")

    def _set_skipping(self, skip: bool) -> None:
        mode = "NONREF" if skip else "DEFAULT"
        if mode != self._mode:
            self._context.skip_frame = self._mode = mode

    def _keep(self, picture: Any) -> Iterator[tuple[int, Any]]:
        number = self._position - 1 if picture.pts is None else picture.pts
        rank = int(self._probe.packet_rank[number])
        if rank < 0:
            return
        if not self._probe.ordered:
            rank = self._shown
            self._shown += 1
        if rank > self.last_rank and self._wants(rank):
            self.last_rank = rank
            yield rank, picture

    def _wants(self, rank: int) -> bool:
        at = int(np.searchsorted(self._plan.wanted, rank))
        return at < len(self._plan.wanted) and self._plan.wanted[at] == rank

    def _until(self, stop: int) -> Iterator[tuple[int, Any]]:
        """(position, packet) from where the walk stands; fewer where the file has become shorter since it was probed."""
        while self._position < stop:
            packet = next(self._packets, None)
            if packet is None:
                return
            self._position += 1
            if self._tick is not None:
                self._tick()
            if packet.size:  # AVI marks a dropped frame by an empty packet, which would end a decoder's stream
                yield self._position - 1, packet

    def _seek(self, start: int) -> None:
        """Continue from a packet at or before `start`. Raises FFmpegError where the container can't tell which it is."""
        rank = int(self._probe.packet_rank[start])
        time = int(self._probe.pts[max(rank, 0)])
        if not any(self._land(offset, start) for offset in (time, time - 2 * self._span())):
            raise av.error.InvalidDataError(0, "a seek went astray")

    def _span(self) -> int:
        """Ticks that decoding order may run ahead of showing order: sixteen frames, H.264's largest delay."""
        pts = self._probe.pts
        return int(16 * (pts[-1] - pts[0]) // max(1, len(pts) - 1)) + 1

    def _land(self, offset: int, start: int) -> bool:
        self._container.seek(offset, stream=self._stream)
        packets = read_packets(self._container, self._stream)
        for packet in islice(packets, 256):
            position = self._position_of(packet)
            if position is not None:
                self._packets, self._position = chain([packet], packets), position
                return position <= start
        return False

    def _position_of(self, packet: Any) -> int | None:
        """The number of a packet by its time; None where no packet that shows a frame has it."""
        if packet.pts is None:
            return None
        rank = int(np.searchsorted(self._probe.pts, packet.pts))
        if rank == self._probe.frame_count or self._probe.pts[rank] != packet.pts:
            return None
        return int(self._plan.position[rank])


class _NoOpinion:
    """Most decoders say themselves what is wrong."""

    def __call__(self, packet: Any, pictures: list[Any]) -> str:
        """What is wrong with a packet whose pictures came out at once; empty where nothing is."""
        return ""


class _Libjpeg(_NoOpinion):
    """Of Motion JPEG: FFmpeg decodes the zeros behind a picture's end, and a code that there is not, without a word."""

    _SIGNS = ("premature end of data segment", "bad Huffman code")

    def __call__(self, packet: Any, pictures: list[Any]) -> str:
        """What libjpeg warns of."""
        try:
            simplejpeg.decode_jpeg(bytes(packet), "GRAY", fastdct=True, fastupsample=True)
        except ValueError as error:
            reason = str(error)
            return reason if any(sign in reason for sign in self._SIGNS) else ""
        return ""


class _Libvpx(_NoOpinion):
    """Of VP8: FFmpeg shows what lies in memory where a partition ends too early. VP8 is exact (RFC 6386, 1): two decoders
    that differ have read past the end, each in its own way."""

    def __init__(self) -> None:
        self._context = av.CodecContext.create("libvpx", "r")
        self._context.thread_count = 1

    def __call__(self, packet: Any, pictures: list[Any]) -> str:
        """Whether both decoders show the same."""
        try:
            others = self._context.decode(packet)
        except av.error.FFmpegError:
            others = []
        same = len(pictures) == len(others) and all(map(_equal, pictures, others))
        return "" if same else "two decoders read it differently"


def _equal(first: Any, second: Any) -> bool:
    return all(np.array_equal(_pixels(a), _pixels(b)) for a, b in zip(first.planes, second.planes, strict=True))


def _pixels(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width]


_SECOND_OPINIONS: dict[str, type[_NoOpinion]] = {"mjpeg": _Libjpeg, "vp8": _Libvpx}
