"""Small videos whose frames show their own number, so that a decoded picture tells which one it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def numbered_picture(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """uint8 (height, width, 3): the number in binary as eight black or white columns over the upper two thirds, black
    below: nothing about it is symmetric under a turn."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[: height * 2 // 3, bit * width // BITS : (bit + 1) * width // BITS] = 230
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number in an upright decoded picture."""
    height, width = picture.shape[:2]
    strip = picture[height // 4 : height // 2].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if strip[int((bit + 0.5) * width / BITS)] > 115)


def encode_video(
    path: Path,
    codec: str = "libx264",
    count: int = 60,
    size: tuple[int, int] = (128, 96),
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    ticks_per_second: int = 25,
    rotation: int | None = None,
    audio_first: bool = False,
) -> Path:
    """Encode `count` numbered pictures with groups of twelve. pts: in ticks; default 0, 1, 2, ..."""
    options = {"g": "12"} | (options or {})
    if codec == "libx265":
        options["x265-params"] = options.get("x265-params", "") + ":log-level=none"
    # A name that starts with `fast` gets its index at the front, as files for the web have it.
    front = {"movflags": "faststart"} if path.name.startswith("fast") else {}
    with av.open(str(path), "w", container_options=front) as container:
        sound = container.add_stream("aac", rate=44100, layout="mono") if audio_first else None
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, ticks_per_second)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts = 44100, 0
            container.mux(sound.encode(silence))
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame.pts = pts[number] if pts is not None else number
            frame.time_base = Fraction(1, ticks_per_second)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def pyav_times(path: Path) -> np.ndarray:
    """Seconds of the frames that a plain PyAV decode shows, from the first, ascending (AVI's come out of order)."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        pts = sorted(frame.pts for frame in container.decode(stream))
        return np.array([float((p - pts[0]) * stream.time_base) for p in pts])
