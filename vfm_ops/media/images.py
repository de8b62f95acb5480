"""Encoded stills -> uint8 RGB, upright.

Plain JPEGs (most of any corpus) take OpenCV's path, which is the faster one; the rest is Pillow's. The header is read
first: sizes are checked before anything is decoded, and the format is sniffed from the bytes. Embedded colour profiles
are not applied, as in the preprocessing that published encoders were trained with.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vfm_ops.errors import MediaError
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import IMAGE_FORMATS, sniff

# Our own limits are checked on every header, with a sentence that says what to change.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\..*")


@dataclass(frozen=True)
class JpegHeader:
    """What the markers before the first scan say. orientation: EXIF, 1 = upright. scan: offset of the first scan."""

    width: int
    height: int
    components: int
    precision: int
    coding: int  # low nibble of SOF: 0 baseline, 1 extended, 2 progressive, others are rare
    orientation: int
    adobe_transform: int | None
    scan: int

    @property
    def is_plain(self) -> bool:
        """Eight-bit grey or YCbCr that every decoder reads alike."""
        rgb_stored = self.components == 3 and self.adobe_transform == 0
        return self.precision == 8 and self.coding in (0, 1, 2) and self.components in (1, 3) and not rgb_stored


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Parse markers up to the first scan; None when they are damaged or cut."""
    at, orientation, transform, frame = 2, 1, None, None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        size = (data[at + 2] << 8) + data[at + 3]
        body = at + 4
        if marker == 0xDA:
            return None if frame is None else JpegHeader(*frame, orientation, transform, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and body + 6 <= len(data):
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            frame = (width, height, components, precision, marker & 0x0F)
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : at + 2 + size])
        elif marker == 0xEE and data[body : body + 5] == b"Adobe" and size >= 14 and body + 11 < len(data):
            transform = data[body + 11]
        at += 2 + size
    return None


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory; 1 when absent or nonsense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    first = struct.unpack_from(order + "I", tiff, 4)[0]
    if first + 2 > len(tiff):
        return 1
    count = struct.unpack_from(order + "H", tiff, first)[0]
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        if struct.unpack_from(order + "H", tiff, at)[0] == 0x0112:
            value = struct.unpack_from(order + "H", tiff, at + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def decode_image(
    data: bytes, limits: Limits, name: str = "the image", reduce: int = 1, header: JpegHeader | None = None
) -> np.ndarray:
    """Decode a still to uint8 RGB (H, W, 3), EXIF orientation applied, alpha composited on white, 16 bits scaled to 8.

    limits: checked against the header before decoding. name: what the message calls it.
    reduce: 2, 4 or 8 lets a plain JPEG be decoded at that fraction of its size (DCT scaling); others ignore it.
    header: of these very bytes, when it has been read already.
    Raises MediaError('empty' | 'not_media' | 'bomb' | 'truncated' | 'damaged' | 'unsupported').
    """
    if not data:
        raise MediaError("empty", f"{name} is empty (0 bytes); copy or download it again.")
    kind = sniff(data[:512])
    if kind not in IMAGE_FORMATS:
        found = f"a {kind} video" if kind else "no image or video format that is known"
        raise MediaError(
            "not_media", f"{name} is {found} by its first bytes, whatever its name says; remove or fix it."
        )
    if kind == "jpeg":
        header = header or read_jpeg_header(data)
        if header is not None:
            limits.check_size(header.width, header.height, name)
            rgb = _decode_plain_jpeg(data, header, reduce)
            if rgb is not None:
                return rgb
    return _decode_with_pillow(data, kind, limits, name)


_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _decode_plain_jpeg(data: bytes, header: JpegHeader, reduce: int) -> np.ndarray | None:
    """OpenCV's decoder; None for what it reads wrongly (CMYK, Adobe RGB) or without noticing a missing end."""
    if not header.is_plain or data.rfind(b"\xff\xd9", header.scan) < 0:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce])
    if pixels is None:
        return None
    return pixels if reduce == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _decode_with_pillow(data: bytes, kind: str, limits: Limits, name: str) -> np.ndarray:
    if kind == "heic" and not _register_heif():
        raise MediaError("unsupported", f"{name} is HEIC, which needs pillow-heif: pip install pillow-heif.")
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS[kind]) as image:
            limits.check_size(*image.size, name)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except MemoryError as error:
        message = f"{name} needs more memory than its decoder may use; shrink it or raise limits.memory_mb."
        raise MediaError("memory", message) from error
    except UnidentifiedImageError as error:
        # The magic is right and the rest is not: a stub of a file, or one overwritten with noise.
        if _tells_truncation(data, kind):
            raise MediaError("truncated", _truncated(name, kind)) from error
        raise MediaError(
            "damaged", f"{name} starts like {kind}, but its header can't be read; fetch it again."
        ) from error
    # On damaged input Pillow's plugins raise almost any type, RuntimeError and struct.error included.
    except Exception as error:
        reason = str(error).lower()
        if isinstance(error, EOFError) or any(
            word in reason for word in ("truncat", "end of file", "not enough", "eof")
        ):
            raise MediaError("truncated", _truncated(name, kind)) from error
        if _tells_truncation(data, kind):
            raise MediaError("truncated", _truncated(name, kind)) from error
        raise MediaError(
            "damaged", f"{name} can't be decoded as {kind} ({error}); fetch or export it again."
        ) from error


def _truncated(name: str, kind: str) -> str:
    return f"{name} is a {kind} that ends before its last row (truncated); copy or download it again."


def _tells_truncation(data: bytes, kind: str) -> bool:
    """Whether the file misses its end marker, or is shorter than its header says."""
    if kind == "jpeg":
        header = read_jpeg_header(data)
        return header is None or data.rfind(b"\xff\xd9", header.scan) < 0
    if kind == "png":
        return b"IEND" not in data[-64:]
    if kind == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if kind == "bmp":
        return len(data) < int.from_bytes(data[2:6], "little")
    if kind in ("avif", "heic"):
        return not _boxes_fit(data)
    return kind == "gif" and not data.rstrip(b"\0").endswith(b";")


def _boxes_fit(data: bytes) -> bool:
    """Whether every top-level ISO box ends inside the file."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 0:
            return True
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return True
        at += size
    return at == len(data)


_PILLOW_FORMATS = {
    "jpeg": ("JPEG", "MPO"),
    "png": ("PNG",),
    "webp": ("WEBP",),
    "gif": ("GIF",),
    "bmp": ("BMP",),
    "tiff": ("TIFF",),
    "avif": ("AVIF",),
    "heic": ("HEIF",),
}


@lru_cache(maxsize=1)
def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _to_rgb(image: Any) -> np.ndarray:
    """Any Pillow mode -> uint8 RGB. Alpha (or a transparent palette entry) is composited on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return cv2.cvtColor(_scaled_to_8_bits(np.asarray(image)), cv2.COLOR_GRAY2RGB)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image.convert("RGB"))


def _scaled_to_8_bits(gray: np.ndarray) -> np.ndarray:
    """16-bit grey to 8 by its range (65535 -> 255); floats in [0, 1] by 255; anything wider by its own maximum."""
    values = np.nan_to_num(gray.astype(np.float64))
    top = float(values.max(initial=0.0))
    if gray.dtype.kind == "f":
        full = 1.0 if top <= 1.0 else max(255.0, top)
    else:
        full = 65535.0 if top <= 65535 else top
    return np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)
