"""What a video is, by demuxing alone: the time of every frame, the keyframes, and which packet shows which frame.

Only the first frame is decoded, for the rotation. An hour of video is a few arrays of a few hundred kilobytes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import av
import av.error
import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.media.container import best_video_stream, open_container
from vfm_ops.media.limits import Limits
from vfm_ops.media.source import MediaSource


@dataclass(frozen=True)
class Probe:
    """A video's timeline. Frames are numbered in the order in which they are shown.

    width, height: upright, after rotation. rotation: degrees counter-clockwise that make a decoded frame upright.
    duration_s: from the first frame to the end of the last. fps: average. codec: FFmpeg's name of the decoder.
    streams: video streams in the file; stream_index: the one that is used (FFmpeg's default).
    time_base: seconds per tick, as (numerator, denominator). pts: int64 (N,), ticks, ascending.
    packet_rank: int32 (P,): the frame that packet p shows, in decoding order; -1 when it shows none (edit lists).
    packet_key: bool (P,). ordered: whether packets' times are reliable; where not (AVI with B-frames), frames are
        counted as they come out of the decoder, and there is no seeking.
    cut_short: whether the data ends clearly before its header says (a truncated file).
    """

    width: int
    height: int
    duration_s: float
    fps: float
    codec: str
    container: str
    rotation: int
    streams: int
    stream_index: int
    time_base: tuple[int, int]
    ordered: bool
    cut_short: bool
    pts: np.ndarray = field(repr=False)
    packet_rank: np.ndarray = field(repr=False)
    packet_key: np.ndarray = field(repr=False)

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
    with open_container(source, limits) as container:
        stream = best_video_stream(container, source)
        context = stream.codec_context
        limits.check_size(context.width or 0, context.height or 0, source.name)
        _check_duration(container, stream, limits, source)
        packets = _demux(container, stream, source, tick)
        rotation, first_pts = _first_frame(container, stream, packets)
        return _assemble(source, container, stream, packets, rotation, first_pts)


@dataclass
class _Packets:
    pts: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    vague: bool  # a packet without a presentation time, or decoding times that jump back (several edits)
    last_duration: int

    def end_s(self, time_base: Any) -> float:
        """Seconds from the first time to the end of the last."""
        return (
            float((int(self.pts.max()) - int(self.pts.min()) + self.last_duration) * time_base)
            if len(self.pts)
            else 0.0
        )


def _check_duration(container: Any, stream: Any, limits: Limits, source: MediaSource) -> None:
    seconds = 0.0
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    if seconds > limits.max_duration_s:
        limit = limits.max_duration_s
        message = (
            f"{source.name} is {seconds:.0f} s long, over limits.max_duration_s = {limit:.0f}; raise it or cut it."
        )
        raise MediaError("too_long", message)


def _demux(container: Any, stream: Any, source: MediaSource, tick: Any) -> _Packets:
    pts, key, hidden = array("q"), array("b"), array("b")
    vague, duration, previous, last_dts = False, 0, 0, None
    try:
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is None and packet.pts is None:
                continue  # the flush at the end of the stream
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                stamp = previous + max(1, duration)
            vague |= packet.pts is None
            if packet.dts is not None:
                vague |= last_dts is not None and packet.dts < last_dts
                last_dts = packet.dts
            previous, duration = stamp, packet.duration or duration
            pts.append(stamp)
            key.append(packet.is_keyframe)
            hidden.append(packet.is_discard)
            if tick is not None:
                tick()
    except av.error.FFmpegError as error:
        # A read error at the end of a cut file: what came before it is a video still.
        if not pts:
            raise MediaError("damaged", f"{source.name} can't be read ({error}); fetch it again.") from error
    return _Packets(
        np.frombuffer(pts, np.int64) if pts else np.zeros(0, np.int64),
        np.array(key, bool),
        np.array(hidden, bool),
        vague,
        duration,
    )


def _first_frame(container: Any, stream: Any, packets: _Packets) -> tuple[int, int | None]:
    """Rotation, and the first presentable time where pictures lead the first keyframe (else None).

    Pictures that lead the first keyframe may refer to a group that was cut away: then the decoder never shows them.
    """
    if not packets.key.any() or stream.codec_context.width is None:
        return 0, None
    first_key = int(np.argmax(packets.key))
    leading = bool((packets.pts[first_key:] < packets.pts[first_key]).any())
    try:
        container.seek(int(packets.pts.min()), stream=stream)
        context = stream.codec_context
        for count, packet in enumerate(container.demux(stream)):
            frames = context.decode(packet) or ([] if leading else context.decode(None))
            if frames:
                return int(frames[0].rotation), frames[0].pts if leading else None
            if not leading:
                context.flush_buffers()
            if count > 64:
                break
    except av.error.FFmpegError:
        # Decoding will say what is wrong, frame by frame; the timeline stands.
        return 0, None
    return 0, None


def _assemble(
    source: MediaSource, container: Any, stream: Any, packets: _Packets, rotation: int, first_pts: int | None
) -> Probe:
    hidden = packets.hidden.copy()
    if packets.key.any():
        hidden[: int(np.argmax(packets.key))] = True
    if first_pts is not None:
        hidden |= packets.pts < first_pts
    shown = np.flatnonzero(~hidden)
    if not len(shown):
        raise MediaError("truncated", f"{source.name} holds no decodable video packet; copy or download it again.")
    order = shown[np.argsort(packets.pts[shown], kind="stable")]
    rank = np.full(len(packets.pts), -1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    pts = packets.pts[order]
    context = stream.codec_context
    cut_short = _is_cut_short(source, container, stream, len(packets.pts), packets.end_s(stream.time_base))
    # AVI stores no presentation times, and without its index (at the end) every packet claims to be a keyframe.
    vague_avi = container.format.name == "avi" and (context.has_b_frames or cut_short or bool(packets.key.all()))
    seconds = ticks_to_seconds(pts, (stream.time_base.numerator, stream.time_base.denominator))
    step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0 / float(stream.average_rate or 25)
    last = float(packets.last_duration * stream.time_base) or step
    turned = rotation % 180 == 90
    return Probe(
        width=context.height if turned else context.width,
        height=context.width if turned else context.height,
        duration_s=float(seconds[-1]) + last,
        fps=len(pts) / (float(seconds[-1]) + last),
        codec=context.name,
        container=container.format.name,
        rotation=rotation % 360 if rotation % 90 == 0 else 0,
        streams=len(container.streams.video),
        stream_index=stream.index,
        time_base=(stream.time_base.numerator, stream.time_base.denominator),
        ordered=not (packets.vague or vague_avi or bool((np.diff(pts) == 0).any())),
        cut_short=cut_short,
        pts=pts,
        packet_rank=rank,
        packet_key=packets.key,
    )


def _is_cut_short(source: MediaSource, container: Any, stream: Any, packet_count: int, end_s: float) -> bool:
    """Whether the header declares more than there is. end_s: where the last packet ends, from the stream's start."""
    if container.format.name == "avi":
        head = source.head(8)
        return source.size() < int.from_bytes(head[4:8], "little") + 8
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
