"""One small video of every container and codec that PyAV's own build can write, with pictures of a known shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FRAMES = 24
GROUP = 8


@dataclass(frozen=True)
class Kind:
    """A file name's ending, an encoder, its pixel format and options, the size of its pictures, and the muxer."""

    extension: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    muxer: str | None = None

    @property
    def name(self) -> str:
        return f"{self.extension}-{self.codec}"


KINDS = (
    Kind("mp4", "libx264", {"bf": "2"}),
    Kind("mkv", "libx265", {"x265-params": "log-level=none:bframes=2:keyint=8:min-keyint=8"}),
    Kind("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    Kind("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    Kind("mp4", "libsvtav1", {"preset": "12", "svtav1-params": "keyint=8"}, size=(64, 64)),
    Kind("avi", "mpeg4", {"bf": "0"}),
    Kind("avi", "mjpeg", {"q": "2"}, "yuvj420p"),
    Kind("mpg", "mpeg2video", {"bf": "2"}),
    Kind("ts", "libx264", {"bf": "2"}),
    Kind("flv", "flv"),
    Kind("wmv", "wmv2"),
    Kind("3gp", "h263", size=(128, 96)),
    Kind("mov", "prores", pix_fmt="yuv422p10le"),
    Kind("mkv", "ffv1"),
    Kind("vob", "mpeg1video", {"bf": "2"}, muxer="vob"),
)


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): a coloured ramp that a bright square crosses; smooth, so that a wrong picture shows."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    ramp = np.stack([60 + 120 * x, 60 + 120 * y, 180 - 60 * x - 60 * y], -1)
    at = number * (width - 16) // FRAMES
    ramp[height // 3 : height // 3 + 12, at : at + 16] = (230, 210, 40)
    return np.rint(ramp).astype(np.uint8)


def write(path: Path, kind: Kind, count: int = FRAMES, pts: list[int] | None = None, rate: int = 25) -> Path:
    """Encode `count` pictures. pts: times in ticks of 1/rate s; default 0, 1, 2, ..."""
    with av.open(str(path), "w", format=kind.muxer) as container:
        stream = container.add_stream(kind.codec, rate=rate, options={"g": str(GROUP), **kind.options})
        stream.width, stream.height, stream.pix_fmt = *kind.size, kind.pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.gop_size = GROUP
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *kind.size), format="rgb24")
            frame.pts, frame.time_base = (number if pts is None else pts[number]), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def full_decode(path: Path) -> list[tuple[float, np.ndarray]]:
    """The oracle: PyAV reads the file in order, shows every picture, and nothing is planned. Seconds from the first."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        frames = [(f.pts, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        return [(float((p - frames[0][0]) * stream.time_base), pixels) for p, pixels in frames]


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in decibel; infinite where they are equal."""
    error = float(((ours.astype(np.float32) - theirs) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255.0**2 / error)


def mutations(data: bytes, other: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file: flipped bits, a cut head or tail, a stretch lost, doubled, zeroed, or from another file."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = ("flip", "flip", "tail", "lost", "zero", "splice", "double", "head")[number % 8]
        yield f"{kind} {number}", _mutate(kind, data, other, rng)


def _mutate(kind: str, data: bytes, other: bytes, rng: Any) -> bytes:
    size = len(data)
    start = int(rng.integers(0, size))
    length = int(rng.integers(1, max(2, size // 8)))
    if kind == "flip":
        changed = np.frombuffer(data, np.uint8).copy()
        for at in rng.integers(0, size, int(rng.integers(1, 9))):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        return changed.tobytes()
    if kind == "tail":
        return data[: max(1, start)]
    if kind == "head":
        return data[start // 4 :]
    if kind == "lost":
        return data[:start] + data[start + length :]
    if kind == "zero":
        return data[:start] + bytes(min(length, size - start)) + data[start + length :]
    if kind == "double":
        return data[: start + length] + data[start:]
    begin = int(rng.integers(0, max(1, len(other) - length)))
    return data[:start] + other[begin : begin + length] + data[start + length :]
