"""Stills of every format for the image suite, made from one closed-form picture; and what strict decoders make of a file."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from collections.abc import Callable

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

WIDTH, HEIGHT = 96, 64


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (H, W, 3): smooth in colour, with no symmetry, so that every turn of it is another picture."""
    y, x = np.mgrid[0:height, 0:width]
    red = 30 + 200 * x / max(1, width - 1)
    green = 40 + 180 * y / max(1, height - 1)
    blue = 128 + 90 * np.sin(x / 9.0 + (y / 14.0) ** 2)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def textured(height: int = 120, width: int = 160) -> np.ndarray:
    """The same with noise, so that most bytes of any file are its pixels'."""
    noise = np.random.default_rng(7).integers(-25, 26, (height, width, 1))
    return np.clip(picture(height, width).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image | np.ndarray, **options) -> bytes:
    """A file as pillow-heif writes it; skips the test where that is absent."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install pillow-heif")
    pillow_heif.register_heif_opener()
    # x265's threads wait for each other on a busy machine, for seconds a picture.
    quick = {"x265:pools": "none", "x265:frame-threads": 1}
    return encoded(image, "HEIF", **({"quality": 95, "chroma": 444, "enc_params": quick} | options))


def png_chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """One chunk, its checksum right unless given."""
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def with_png_chunk(png: bytes, chunk: bytes) -> bytes:
    """The chunk goes right behind the header."""
    return png[:33] + chunk + png[33:]


def with_jpeg_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A segment right behind the start of the image."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal to noise ratio, dB; minus infinity where the sizes differ."""
    if ours.shape != theirs.shape:
        return -np.inf
    error = float(((ours.astype(np.float64) - theirs) ** 2).mean())
    return np.inf if error == 0 else 10 * np.log10(255.0**2 / error)


def strict_pillow(data: bytes) -> np.ndarray | None:
    """What Pillow makes of a file, upright, in sRGB, on white; None where it refuses the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            profile = image.info.get("icc_profile")
            with contextlib.suppress(Exception):  # EXIF that can't be read is no part of the picture
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                gray = np.rint(np.asarray(image) / 257.0).astype(np.uint8)
                return np.stack([gray] * 3, -1)
            image = image.convert("RGBA") if "transparency" in image.info else image
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            if profile:
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def strict_ffmpeg(data: bytes) -> np.ndarray | None:
    """The same of FFmpeg (`-xerror -err_detect explode`), as it is stored."""
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
            frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
        return frames[0].to_ndarray(format="rgb24") if frames else None
    except Exception:
        return None


def _jpeg(**options) -> Callable[[np.ndarray], bytes]:
    return lambda rgb: encoded(rgb, "JPEG", **({"quality": 92} | options))


def _sixteen_bits(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".png", rgb[..., 0].astype(np.uint16) * 257)[1].tobytes()


# The twelve formats that are damaged, each with what its encoder is asked for.
FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": _jpeg(),
    "jpeg progressive": _jpeg(progressive=True),
    "jpeg cmyk": lambda rgb: encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=92),
    "png": lambda rgb: encoded(rgb, "PNG"),
    "png 16 bits": _sixteen_bits,
    "webp": lambda rgb: encoded(rgb, "WEBP", quality=90),
    "webp lossless": lambda rgb: encoded(rgb, "WEBP", lossless=True),
    "avif": lambda rgb: encoded(rgb, "AVIF", quality=90),
    "heic": heic,
    "tiff lzw": lambda rgb: encoded(rgb, "TIFF", compression="tiff_lzw"),
    "gif": lambda rgb: encoded(Image.fromarray(rgb).quantize(64), "GIF"),
    "bmp": lambda rgb: encoded(rgb, "BMP"),
}


def mutations(data: bytes, other: bytes, count: int, seed: int) -> list[bytes]:
    """Damaged copies: bits flipped, pieces cut out or off, pieces replaced by those of `other`, a file of the same format."""
    generator = random.Random(seed)
    return [generator.choice((_flipped, _flipped, _cut, _spliced))(data, other, generator) for _ in range(count)]


def _flipped(data: bytes, other: bytes, generator: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(generator.choice((1, 1, 3, 12))):
        broken[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(broken)


def _cut(data: bytes, other: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(data))
    if generator.random() < 0.5:
        return data[:start]
    return data[:start] + data[start + generator.choice((1, 7, 64, 500)) :]


def _spliced(data: bytes, other: bytes, generator: random.Random) -> bytes:
    start, length = generator.randrange(len(data)), generator.choice((4, 60, 600))
    piece = other[start : start + length]
    return data[:start] + piece + data[start + (len(piece) if generator.random() < 0.5 else 0) :]


def tiff(*pages: tuple[np.ndarray, dict[int, int | tuple[int, ...]]]) -> bytes:
    """An uncompressed little-endian TIFF of (samples, tags) a page, for what no writer at hand can write.

    samples: (H, W) or (H, W, C), or (C, H, W) with tag 284 (PlanarConfiguration) = 2. tags: beside those of the geometry;
    a number is a SHORT.
    """
    parts, at, link = [b"II*\0", b"\0\0\0\0"], 8, 1
    for samples, extra in pages:
        planes = samples if extra.get(284) == 2 else samples[None]
        height, width = planes.shape[1:3]
        count = len(planes) if extra.get(284) == 2 else (samples.shape[2] if samples.ndim == 3 else 1)
        bits, kind = samples.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
        offsets = []
        for plane in planes:
            parts.append(plane.tobytes())
            offsets.append(at)
            at += len(parts[-1])
        longs = {
            256: (width,),
            257: (height,),
            273: tuple(offsets),
            278: (height,),
            279: (planes[0].nbytes,) * len(planes),
        }
        shorts = {258: (bits,) * count, 259: (1,), 262: (2 if count > 2 else 1,), 277: (count,), 339: (kind,) * count}
        shorts |= {tag: value if isinstance(value, tuple) else (value,) for tag, value in extra.items()}
        entries = sorted([(t, 4, "I", v) for t, v in longs.items()] + [(t, 3, "H", v) for t, v in shorts.items()])
        parts[link] = struct.pack("<I", at + sum(len(v) * struct.calcsize(f) for _, _, f, v in entries))
        directory = struct.pack("<H", len(entries))
        for tag, number, form, values in entries:
            body = struct.pack(f"<{len(values)}{form}", *values)
            if len(body) <= 4:
                directory += struct.pack("<HHI", tag, number, len(values)) + body.ljust(4, b"\0")
                parts.append(b"")
            else:
                directory += struct.pack("<HHII", tag, number, len(values), at)
                parts.append(body)
            at += len(parts[-1])
        short = sum(len(v) * struct.calcsize(f) for _, _, f, v in entries if len(v) * struct.calcsize(f) <= 4)
        parts.append(bytes(short))  # the room that the link counted for what lies inside the directory
        at += short
        parts += [directory, b"\0\0\0\0"]
        at += len(directory) + 4
        link = len(parts) - 1
    return b"".join(parts)
