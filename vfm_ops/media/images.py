"""Encoded stills -> uint8 sRGB, upright.

The header is read first: sizes are checked before anything is decoded, and the format is sniffed from the bytes. JPEGs
(most of any corpus) take a path of their own, `jpeg.py`; the rest is Pillow's, PNGs after `png.py` has taken their
metadata away, TIFFs with `tiff.py`'s help. Only whole pictures come out: a decoder that conceals damage is checked.
docs/media-images.md says what becomes of every format.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from vfm_ops.errors import MediaError
from vfm_ops.media.colour import srgb_array
from vfm_ops.media.jpeg import JpegHeader, decode_jpeg, read_jpeg_header
from vfm_ops.media.limits import Limits
from vfm_ops.media.orientation import exif_orientation, upright, xmp_orientation
from vfm_ops.media.png import read_png
from vfm_ops.media.second_opinion import ffmpeg_agrees_on_heic
from vfm_ops.media.sniff import IMAGE_FORMATS, sniff
from vfm_ops.media.tiff import corrected_tiff, decode_deep_tiff, prepare_tiff

# Our own limits are checked on every header, with a sentence that says what to change.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\..*")


def decode_image(
    data: bytes, limits: Limits, name: str = "the image", reduce: int = 1, header: JpegHeader | None = None
) -> np.ndarray:
    """Decode a still to uint8 sRGB (H, W, 3): turned upright, its ICC profile applied, alpha composited on white, deep
    samples scaled to 8 bits, the first (or primary) of several pictures.

    limits: checked against the header before decoding. name: what the message calls it.
    reduce: 2, 4 or 8 lets a plain JPEG be decoded at that fraction of its size (DCT scaling); others ignore it.
    header: of these very bytes, when it has been read already.
    Raises MediaError('empty' | 'not_media' | 'bomb' | 'truncated' | 'damaged' | 'unsupported' | 'memory').
    """
    if not data:
        raise MediaError("empty", f"{name} is empty (0 bytes); copy or download it again.")
    kind = sniff(data[:512])
    if kind not in IMAGE_FORMATS:
        found = f"a {kind} video" if kind else "no image or video format that is known"
        raise MediaError(
            "not_media", f"{name} is {found} by its first bytes, whatever its name says; remove or fix it."
        )
    try:
        if kind == "jpeg":
            return _decode_jpeg(data, header or read_jpeg_header(data), limits, name, reduce)
        return _decode_with_pillow(data, kind, limits, name)
    except MediaError:
        raise
    except MemoryError as error:
        message = f"{name} needs more memory than its decoder may use; shrink it or raise decode.memory_mb."
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
        tells = isinstance(error, EOFError) or any(w in reason for w in ("truncat", "end of file", "not enough", "eof"))
        if tells or _tells_truncation(data, kind):
            raise MediaError("truncated", _truncated(name, kind)) from error
        raise MediaError(
            "damaged", f"{name} can't be decoded as {kind} ({error}); fetch or export it again."
        ) from error


def _decode_jpeg(data: bytes, header: JpegHeader | None, limits: Limits, name: str, reduce: int) -> np.ndarray:
    if header is None:
        raise MediaError("truncated", _truncated(name, "jpeg"))
    limits.check_size(header.width, header.height, name)
    return decode_jpeg(data, header, name, reduce if header.is_plain else 1)


def _decode_with_pillow(data: bytes, kind: str, limits: Limits, name: str) -> np.ndarray:
    if kind == "heic" and not _register_heif():
        raise MediaError("unsupported", f"{name} is HEIC, which needs pillow-heif: pip install pillow-heif.")
    exif, icc, xmp, picture = None, None, None, data
    if kind == "png":
        parts = read_png(data, name)
        exif, icc, xmp, picture = parts.exif, parts.icc, parts.xmp, parts.picture
    try:
        image = _open(picture, kind)
    except UnidentifiedImageError:
        if kind != "tiff":
            raise
        return decode_deep_tiff(data, limits, name)
    with image:
        limits.check_size(image.width, image.height, name)
        if isinstance(image, TiffImageFile):
            prepare_tiff(data, image, limits, name)
        image.load()
        if kind == "heic" and ffmpeg_agrees_on_heic(data, np.asarray(image.convert("RGB"))) is False:
            message = f"{name} is a heic with broken picture data: two decoders see different pictures; fetch it again."
            raise MediaError("damaged", message)
        if isinstance(image, TiffImageFile):
            image = corrected_tiff(image)
        # What a plugin has turned itself (TIFF, HEIC), it no longer calls turned.
        orientation = exif_orientation(exif or image.info.get("exif")) or xmp_orientation(xmp or image.info.get("xmp"))
        return upright(srgb_array(image, icc or image.info.get("icc_profile")), orientation or 1)


def _open(data: bytes, kind: str) -> Any:
    try:
        return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS[kind])
    except Exception:
        if kind != "avif" or b"Exif" not in data:
            raise
    # libavif refuses a file for an EXIF block that it can't read: under another name it is left out.
    return Image.open(io.BytesIO(data.replace(b"Exif", b"skip")), formats=_PILLOW_FORMATS[kind])


def _truncated(name: str, kind: str) -> str:
    return f"{name} is a {kind} that ends before its last row (truncated); copy or download it again."


def _tells_truncation(data: bytes, kind: str) -> bool:
    """Whether the file misses its end marker, or is shorter than its header says."""
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
    # One thread: the pool of decoder processes is the parallelism.
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False)
    return True
