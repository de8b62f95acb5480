"""What a video is, by demuxing alone: the time of every frame, the keyframes, and which packet shows which frame.

Only the first frame is decoded, for the orientation. An hour of video is a few arrays of a few hundred kilobytes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import av
import av.error
import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.media.container import best_video_stream, open_container, read_packets
from vfm_ops.media.limits import Limits
from vfm_ops.media.orientation import Orientation, orientation_of
from vfm_ops.media.source import MediaSource

# Values of `packet_rank` for packets that show no frame: one that others may refer to, and one that can't be decoded.
HIDDEN, UNDECODABLE = -1, -2
# Containers that store each packet's own time and an index by it. Elsewhere a seek lands anywhere, and times are those
# of other packets until the next one that carries its own (MPEG program streams), or are counted from zero.
_SEEKABLE = ("mov", "matroska")
_TS_DISCONT = av.format.Flags.ts_discont.value  # set by FFmpeg on formats whose clock may start anew
# A jump of the clock by more than this is a new clock, not a gap: what ffmpeg's -dts_delta_threshold says.
_NEW_CLOCK_S = 10.0


@dataclass(frozen=True)
class Probe:
    """A video's timeline. Frames are numbered in the order in which they are shown.

    width, height: upright. rotation, flipped: how a decoded frame is made upright, see `Orientation`.
    duration_s: from the first frame to the end of the last. fps: average. codec: FFmpeg's name of the decoder.
    streams: video streams in the file; stream_index: the one that is used (FFmpeg's default).
    time_base: seconds per tick, as (numerator, denominator). pts: int64 (N,), ticks, ascending; where the clock of the
        container starts anew, it is carried on.
    packet_rank: int32 (P,): the frame that packet p shows, in decoding order; HIDDEN where it shows none (edit lists),
        UNDECODABLE where what it refers to comes before the file's start.
    packet_key: bool (P,). ordered: whether packets' times tell the order of the frames; where not (AVI with B-frames),
        frames are counted as they come out of the decoder. seekable: whether a seek can be believed.
    cut_short: whether the data ends clearly before its header says (a truncated file).
    damage: what was found wrong without decoding, in a few words; empty for a sound file.
    """

    width: int
    height: int
    duration_s: float
    fps: float
    codec: str
    container: str
    rotation: int
    flipped: bool
    streams: int
    stream_index: int
    time_base: tuple[int, int]
    ordered: bool
    seekable: bool
    cut_short: bool
    damage: str
    pts: np.ndarray = field(repr=False)
    packet_rank: np.ndarray = field(repr=False)
    packet_key: np.ndarray = field(repr=False)

    @property
    def orientation(self) -> Orientation:
        return Orientation(self.rotation, self.flipped)

    @property
    def first_key(self) -> int:
        """The packet from which decoding starts: the first keyframe, or the first of all where none is marked."""
        return int(np.argmax(self.packet_key))

    @property
    def frame_count(self) -> int:
        return len(self.pts)

    @property
    def pts_s(self) -> np.ndarray:
        """float64 (N,): seconds from the stream's first presentation timestamp."""
        return ticks_to_seconds(self.pts, self.time_base)

    @property
    def keyframes(self) -> np.ndarray:
        """int64: frame indices that can be decoded on their own, ascending."""
        ranks = self.packet_rank[self.packet_key]
        return np.sort(ranks[ranks >= 0]).astype(np.int64)


def ticks_to_seconds(pts: np.ndarray, time_base: tuple[int, int]) -> np.ndarray:
    """Ticks -> float64 seconds from the first. One rounding only: integer difference times num, over den."""
    return (pts - pts[0]) * time_base[0] / float(time_base[1]) if len(pts) else np.zeros(0)


def probe_video(source: MediaSource, limits: Limits, tick: Any = None) -> Probe:
    """Demux the default video stream of `source`.

    tick: called once a packet, so that a watcher sees progress.
    Raises MediaError('no_video' | 'bomb' | 'too_long' | 'empty' | 'truncated' | 'damaged' and those of opening).
    """
    try:
        probe, errors = _probe(source, limits, tick, strict=True)
    except MediaError as error:
        if error.kind not in ("damaged", "truncated", "no_video", "empty"):
            raise
        errors = [getattr(error.__cause__, "strerror", None) or "its header contradicts itself"]
    # What a strict demuxer gives up, a tolerant one may read past; what it says then is only half of the truth.
    return _probe(source, limits, tick, strict=False, known=errors[0])[0] if errors else probe


def _probe(source: MediaSource, limits: Limits, tick: Any, strict: bool, known: str = "") -> tuple[Probe, list[str]]:
    errors = [known] if known else []
    with open_container(source, limits, strict, errors) as container:
        stream = best_video_stream(container, source)
        context = stream.codec_context
        limits.check_size(context.width or 0, context.height or 0, source.name)
        restarts = bool(container.format.flags & _TS_DISCONT)
        if not restarts:  # there, a duration is the difference of two clocks
            _check_duration(_declared_s(container, stream), limits, source)
        packets = _demux(source, container, stream, restarts, errors, tick)
        if not len(packets.pts) and errors:
            raise MediaError("damaged", f"{source.name} can't be read ({errors[0]}); fetch it again.")
        _check_duration(packets.end_s(stream.time_base), limits, source)
        probe = _assemble(source, container, stream, packets, errors[0] if errors else "")
        return probe, errors


@dataclass
class _Packets:
    """The stream as it is stored. first_shown: number of the packet whose picture the decoder shows first, or -1."""

    pts: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    vague: bool
    incomplete: int
    last_duration: int
    orientation: Orientation
    first_shown: int

    def end_s(self, time_base: Any) -> float:
        """Seconds from the first time to the end of the last."""
        if not len(self.pts):
            return 0.0
        return float((int(self.pts.max()) - int(self.pts.min()) + self.last_duration) * time_base)


def _declared_s(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _check_duration(seconds: float, limits: Limits, source: MediaSource) -> None:
    if seconds > limits.max_duration_s:
        limit = limits.max_duration_s
        message = (
            f"{source.name} is {seconds:.0f} s long, over decode.max_duration_s = {limit:.0f}; raise it or cut it."
        )
        raise MediaError("too_long", message)


class _Clock:
    """Packets' times on one line: where the container's clock starts anew, it is carried on (MPEG, Ogg)."""

    def __init__(self, time_base: Any, restarts: bool) -> None:
        self._threshold = int(_NEW_CLOCK_S / time_base) if restarts else None
        self._offset = 0
        self._last: int | None = None
        self._previous, self.duration = 0, 0
        self.jumped_back, self.broken = False, 0
        self.pts, self.dts = array("q"), array("q")
        self.lacks_pts = self.lacks_dts = False

    def add(self, packet: Any) -> None:
        """Note the next packet's times; a packet without any follows the one before."""
        if packet.dts is not None:
            self._carry_on(packet.dts)
        dts = packet.dts if packet.dts is not None else packet.pts
        dts = self._previous + max(1, self.duration) if dts is None else dts + self._offset
        pts = dts if packet.pts is None else packet.pts + self._offset
        if self._threshold is not None and abs(pts - dts) > self._threshold:
            self.broken, pts = self.broken + 1, dts
        self.lacks_pts |= packet.pts is None
        self.lacks_dts |= packet.dts is None
        self.duration = packet.duration or self.duration
        self._previous = pts
        self.pts.append(pts)
        self.dts.append(dts)

    def _carry_on(self, dts: int) -> None:
        last, self._last = self._last, dts
        if last is None:
            return
        if self._threshold is not None and (dts < last or dts - last > self._threshold):
            self._offset += last + max(1, self.duration) - dts
        elif dts < last:
            self.jumped_back = True  # several edits

    def times(self) -> np.ndarray:
        """int64 (P,). Where some packets lack a time of showing, times of decoding, which are as far apart, serve all."""
        chosen = self.dts if self.lacks_pts and not self.lacks_dts else self.pts
        return np.frombuffer(chosen, np.int64) if chosen else np.zeros(0, np.int64)


def _demux(source: MediaSource, container: Any, stream: Any, restarts: bool, errors: list[str], tick: Any) -> _Packets:
    clock, first = _Clock(stream.time_base, restarts), _FirstPicture(stream)
    key, hidden, corrupt, place = array("b"), array("b"), array("b"), array("q")
    is_vp8 = stream.codec_context.name == "vp8"
    for number, packet in enumerate(read_packets(container, stream, errors)):
        clock.add(packet)
        key.append(packet.is_keyframe)
        hidden.append(packet.is_discard or not packet.size or (is_vp8 and _is_invisible(packet)))
        corrupt.append(packet.is_corrupt)
        place.append(-1 if packet.pos is None else packet.pos)
        first.feed(packet, number)
        if tick is not None:
            tick()
    if clock.broken:
        errors.append(f"{clock.broken} time stamps are broken")
    orientation, first_shown = first.found()
    pts = clock.times()
    # A decoder that reorders, and times that never do: they are times of decoding, whatever they are called.
    foreign = bool(stream.codec_context.has_b_frames) and not clock.lacks_pts and bool((np.diff(pts) >= 0).all())
    vague = clock.lacks_pts or clock.jumped_back or foreign
    return _Packets(
        pts,
        np.array(key, bool),
        np.array(hidden, bool),
        vague,
        _count_incomplete(source, np.array(corrupt, bool), np.array(key, bool), np.array(place, np.int64)),
        clock.duration,
        orientation,
        first_shown,
    )


def _leading(pts: np.ndarray, key: int) -> slice:
    """The packets right behind a keyframe that are shown before it."""
    later = np.flatnonzero(pts[key + 1 :] >= pts[key])
    return slice(key + 1, key + 1 + int(later[0]) if len(later) else len(pts))


def _count_incomplete(source: MediaSource, corrupt: np.ndarray, key: np.ndarray, place: np.ndarray) -> int:
    """How many packets the demuxer found gaps before or in. place: int64 (P,), offsets in the file, -1 where unknown.

    Where a keyframe follows whose stream's packet counter is 0, whole transport streams were joined (`cat a.ts b.ts`):
    counters differ, yet nothing is missing that the decoder would not notice.
    """
    count = 0
    for number in np.flatnonzero(corrupt):
        behind = number + 1 + np.flatnonzero(key[number + 1 : number + 3])  # the parser holds a picture back
        count += not any(_counts_from_zero(source, int(place[n])) for n in behind)
    return count


def _counts_from_zero(source: MediaSource, at: int) -> bool:
    """Whether a transport stream's packet at this place has continuity counter 0 (ISO/IEC 13818-1, 2.4.3.2)."""
    if at < 0:
        return False
    with source.open() as file:
        file.seek(at)
        head = file.read(4)
    return len(head) == 4 and head[0] == 0x47 and not head[3] & 0x0F


def _is_invisible(packet: Any) -> bool:
    """VP8 stores pictures that are only referred to as packets of their own (RFC 6386, 9.1: show_frame)."""
    return not memoryview(packet)[0] & 0x10


class _FirstPicture:
    """Decodes from the first keyframe until a picture comes, for its orientation and for what it shows to be missing.

    Pictures that lead the first keyframe may refer to a group that was cut away: then the decoder never shows them.
    """

    _PATIENCE = 64

    def __init__(self, stream: Any) -> None:
        self._context = stream.codec_context
        self._fed = 0
        self._done = self._context.width is None
        self._found = Orientation(), -1

    def feed(self, packet: Any, number: int) -> None:
        """The next packet of the stream, until one has shown something."""
        if self._done or not packet.size or not (self._fed or packet.is_keyframe):
            return
        self._fed += 1
        packet.pts = packet.dts = number
        self._decode(packet)
        self._done |= self._fed >= self._PATIENCE

    def found(self) -> tuple[Orientation, int]:
        """Orientation, and the number of the packet that is shown first (-1: unknown)."""
        if not self._done and self._fed:
            self._decode(None)
        return self._found

    def _decode(self, packet: Any) -> None:
        try:
            pictures = self._context.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            return  # decoding will say what is wrong, frame by frame; the timeline stands
        for picture in pictures:
            if picture.pts is not None and not picture.is_corrupt:
                self._found, self._done = (orientation_of(picture), picture.pts), True
                return


def _assemble(source: MediaSource, container: Any, stream: Any, packets: _Packets, damage: str) -> Probe:
    rank = np.where(packets.hidden, HIDDEN, 0).astype(np.int32)
    first_key = int(np.argmax(packets.key)) if packets.key.any() else 0
    rank[:first_key] = UNDECODABLE
    if packets.first_shown >= first_key and not packets.vague:
        leads = rank[_leading(packets.pts, first_key)]
        lost = packets.pts[_leading(packets.pts, first_key)] < packets.pts[packets.first_shown]
        leads[lost & (leads == 0)] = UNDECODABLE
    shown = np.flatnonzero(rank == 0)
    if not len(shown):
        raise MediaError("truncated", f"{source.name} holds no decodable video packet; copy or download it again.")
    order = shown[np.argsort(packets.pts[shown], kind="stable")]
    rank[order] = np.arange(len(order), dtype=np.int32)
    pts = packets.pts[order]
    context = stream.codec_context
    cut_short = _is_cut_short(source, container, stream, len(packets.pts), packets.end_s(stream.time_base))
    # Without its index (at the end) every packet of an AVI claims to be a keyframe.
    unmarked = (cut_short or bool(packets.key.all())) and not context.codec.intra_only
    vague_avi = container.format.name == "avi" and (context.has_b_frames or unmarked)
    ordered = not (packets.vague or vague_avi or bool((np.diff(pts) == 0).any()))
    if not damage and first_key:
        damage = f"the {first_key} pictures before the first keyframe can't be decoded"
    if not damage and packets.incomplete:
        damage = f"data is missing in or before {packets.incomplete} packets"
    seconds = ticks_to_seconds(pts, (stream.time_base.numerator, stream.time_base.denominator))
    step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0 / float(stream.average_rate or 25)
    last = float(packets.last_duration * stream.time_base) or step
    turned = packets.orientation.swaps_sides
    return Probe(
        width=context.height if turned else context.width,
        height=context.width if turned else context.height,
        duration_s=float(seconds[-1]) + last,
        fps=len(pts) / (float(seconds[-1]) + last),
        codec=context.name,
        container=container.format.name,
        rotation=packets.orientation.rotation,
        flipped=packets.orientation.flipped,
        streams=len(container.streams.video),
        stream_index=stream.index,
        time_base=(stream.time_base.numerator, stream.time_base.denominator),
        ordered=ordered,
        seekable=ordered and container.format.name.startswith(_SEEKABLE),
        cut_short=cut_short,
        damage=damage,
        pts=pts,
        packet_rank=rank,
        packet_key=packets.key,
    )


def _is_cut_short(source: MediaSource, container: Any, stream: Any, packet_count: int, end_s: float) -> bool:
    """Whether the header declares more than there is. end_s: where the last packet ends, from the stream's start."""
    if container.format.name == "avi":
        head = source.head(8)
        return source.size() < int.from_bytes(head[4:8], "little") + 8
    if container.format.flags & _TS_DISCONT:
        return False  # nothing is declared: what FFmpeg gives as duration is reckoned from the last packets
    if container.format.name.startswith("matroska") and _segment_end(source.head(256)) > source.size():
        return True
    declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if "mp4" in container.format.name:
        return packet_count < stream.frames
    tag = stream.metadata.get("DURATION", "")
    if not declared and tag.count(":") == 2:
        hours, minutes, rest = tag.split(":")
        declared = int(hours) * 3600 + int(minutes) * 60 + float(rest)
        declared -= float((stream.start_time or 0) * stream.time_base)
    elif not declared and len(container.streams) == 1 and container.duration:
        declared = container.duration / av.time_base
    return end_s < declared - 0.5


def _segment_end(head: bytes) -> int:
    """Where Matroska's one Segment ends as its header says (RFC 8794, sections 4 and 6); 0 when it doesn't say."""
    at = 0
    while at + 4 < len(head):
        name = head[at : at + 4]
        size, length = _ebml_size(head, at + 4)
        if not length or name not in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):
            return 0
        at += 4 + length
        if size == (1 << 7 * length) - 1:  # all ones: unknown, as in a live recording
            return 0
        if name == b"\x18S\x80g":
            return at + size
        at += size
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length number and the bytes that it takes; (0, 0) where there is none."""
    length = 9 - data[at].bit_length()
    if not 1 <= length <= 8 or at + length > len(data):
        return 0, 0
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), length
