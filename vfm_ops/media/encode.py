"""Frames to an H.264 file, one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, crf: int = 23, gop: int | None = None) -> int:
    """Encodes uint8 RGB frames (H, W, 3) of one size as yuv420p; odd sides lose their last row or column.

    crf: x264's quality. gop: frames between keyframes at most; None is x264's own.

    Returns how many frames there were. One thread: the same frames give the same bytes.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.options = {"crf": str(crf), "preset": "veryfast"} | ({} if gop is None else {"g": str(gop)})
        for rgb in frames:
            even = np.ascontiguousarray(rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2])
            if count == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            count += 1
        if count:
            container.mux(stream.encode(None))
    return count
