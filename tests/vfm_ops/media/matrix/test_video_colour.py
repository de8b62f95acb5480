"""Colours as the file declares them: a wrong matrix or range shifts every picture of a corpus, and nobody sees it.

The oracle is the closed form of ITU-R BT.601, BT.709 and BT.2020 (luma weights, narrow and full range), in float64.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from vfm_ops.media.decode import PyAVDecoder
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import probe_video
from vfm_ops.media.source import MediaSource

LUMA_WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
# AVCOL_SPC_*: SMPTE 170M, BT.709, BT.2020 (non-constant luminance); AVCOL_RANGE_*: narrow, full.
TAGS = {"601": 6, "709": 1, "2020": 9}
COLOURS = [(200, 40, 40), (40, 180, 60), (50, 60, 200), (220, 220, 220), (30, 30, 30), (240, 200, 20)]
WIDTH, HEIGHT = 96, 32


def bars() -> np.ndarray:
    """float64 (HEIGHT, WIDTH, 3): one bar a colour, wide enough that chroma never mixes in its middle."""
    return np.repeat(np.array(COLOURS, float), WIDTH // len(COLOURS), 0)[None].repeat(HEIGHT, 0)


def to_ycc(rgb: np.ndarray, matrix: str, full: bool, bits: int = 8) -> np.ndarray:
    """RGB of 0..255 to integer Y'CbCr codes, as the standards write it."""
    red, blue = LUMA_WEIGHTS[matrix]
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    top = 2**bits - 1
    if full:
        codes = np.stack([y * top, cb * top + 2 ** (bits - 1), cr * top + 2 ** (bits - 1)])
    else:
        scale = 2 ** (bits - 8)
        codes = np.stack([(16 + 219 * y) * scale, (128 + 224 * cb) * scale, (128 + 224 * cr) * scale])
    return np.clip(np.rint(codes), 0, top)


def encode(path: Path, codec: str, pix_fmt: str, planes: np.ndarray, matrix: str, full: bool) -> Path:
    """planes: integer codes (3, HEIGHT, WIDTH), at full chroma resolution, in the depth of pix_fmt."""
    subsampled = "420" in pix_fmt
    dtype = np.uint16 if "10" in pix_fmt else np.uint8
    chroma = planes[1:, ::2, ::2] if subsampled else planes[1:]
    data = np.concatenate([planes[0].ravel(), chroma.ravel()]).astype(dtype)
    shape = (HEIGHT * 3 // 2, WIDTH) if subsampled else (3, HEIGHT, WIDTH)
    options = {"qp": "0"} if codec == "libx264" else {}
    options |= {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {}
    options |= {"lossless": "1"} if codec == "libvpx-vp9" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.colorspace = TAGS[matrix]
        stream.codec_context.color_range = 2 if full else 1
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(data.reshape(shape), format=pix_fmt)
            frame.colorspace, frame.color_range, frame.pts = TAGS[matrix], 2 if full else 1, number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> np.ndarray:
    source = MediaSource(str(path))
    probe = probe_video(source, Limits())
    return [rgb for _, rgb in PyAVDecoder(source, probe, plan_decode(probe), Limits()).frames()][1]


def bar_means(rgb: np.ndarray) -> np.ndarray:
    """Mean colour in the middle of each bar: (6, 3)."""
    bar = WIDTH // len(COLOURS)
    return np.stack([rgb[8:24, i * bar + 5 : (i + 1) * bar - 5].reshape(-1, 3).mean(0) for i in range(len(COLOURS))])


@pytest.mark.parametrize("full", [False, True], ids=["narrow", "full"])
@pytest.mark.parametrize("matrix", TAGS)
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("v.mp4", "libx264", "yuv420p"),
        ("v.mkv", "libx264", "yuv444p"),
        ("v.mp4", "libx265", "yuv420p10le"),
        ("v.webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_declared_matrix_and_range_are_applied(tmp_path, name, codec, pix_fmt, matrix, full):
    bits = 10 if "10" in pix_fmt else 8
    planes = to_ycc(bars(), matrix, full, bits)
    got = bar_means(decoded(encode(tmp_path / name, codec, pix_fmt, planes, matrix, full)))
    assert np.abs(got - COLOURS).max() <= 3.0


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("v.mkv", "ffv1", "gray"),
        ("v.mkv", "ffv1", "gray10le"),
        ("v.mov", "qtrle", "argb"),
        ("v.mkv", "ffv1", "bgra"),
        ("v.mkv", "libx264rgb", "rgb24"),
        ("v.mkv", "ffv1", "gbrp10le"),
        ("v.mkv", "ffv1", "yuva420p"),
        ("v.avi", "rawvideo", "bgr24"),
    ],
)
def test_other_layouts_come_out_in_their_own_colours(tmp_path, name, codec, pix_fmt):
    """Grey, RGB and 10 bits; alpha is left out, what is behind it is shown as it is stored."""
    path = tmp_path / name
    rgb = bars().astype(np.uint8)
    source = rgb.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8) if pix_fmt.startswith("gray") else rgb
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"qp": "0"} if "264" in codec else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(source, format="rgb24").reformat(format=pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(bar_means(decoded(path)) - bar_means(source)).max() <= 3.0
