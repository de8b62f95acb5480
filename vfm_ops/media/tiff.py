"""TIFFs: which page is the picture, what Pillow would read wrongly, and what it doesn't read."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from vfm_ops.errors import MediaError
from vfm_ops.media.colour import scaled_to_8_bits
from vfm_ops.media.jpeg import is_whole_jpeg
from vfm_ops.media.limits import Limits
from vfm_ops.media.orientation import upright

# A file may chain any number of pages; the picture is among the first.
_PAGES_SEARCHED = 8
_BLOCKS = frozenset({"xmp", "icc_profile", "exif"})  # of bytes, unless the tag was damaged: Pillow trips over that
_REDUCED_OR_MASK = 0b101
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _TURN = 254, 256, 257, 258, 259, 262, 274
_PLANAR, _SAMPLE_FORMAT, _JPEG_TABLES = 284, 339, 347
_FORMS = {1: "unsigned", 2: "signed", 3: "float"}
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # of strips, of tiles


def prepare_tiff(data: bytes, image: TiffImageFile, limits: Limits, name: str) -> None:
    """Before `image`, opened from `data`, is loaded: the right page, of a size within the limits, that will be read rightly.

    Raises MediaError('bomb' | 'unsupported' | 'damaged').
    """
    _select_page(image)
    limits.check_size(*image.size, name)
    _require_readable(data, image, name)
    image.info = {k: v for k, v in image.info.items() if k not in _BLOCKS or isinstance(v, bytes)}


def _select_page(image: TiffImageFile) -> None:
    """The first page that is neither a reduced copy nor a mask of another; the first of all where there is none."""
    try:
        for number in range(_PAGES_SEARCHED):
            image.seek(number)
            if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK:
                break
        else:
            image.seek(0)
    except EOFError:
        image.seek(0)


def _require_readable(data: bytes, image: TiffImageFile, name: str) -> None:
    """Raises MediaError for what Pillow or libtiff would read wrongly without an error."""
    tags = image.tag_v2
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (1,))) > 8:
        raise MediaError("unsupported", _unsupported_tiff(name, tags))
    if tags.get(_COMPRESSION) != 7:
        return
    # libtiff only warns of JPEG strips with broken data, as libjpeg does.
    tables = bytes(tags.get(_JPEG_TABLES, b""))
    for offsets, lengths in zip(_OFFSETS, _LENGTHS):
        for at, length in zip(tags.get(offsets, ()), tags.get(lengths, ())):
            if not is_whole_jpeg(tables[:-2] + data[at + (2 if tables else 0) : at + length]):
                message = f"{name} is a tiff with a broken JPEG strip: part would be grey or shifted; fetch it again."
                raise MediaError("damaged", message)


def corrected_tiff(image: TiffImageFile) -> Any:
    """Deep greys as they are meant: Pillow reads unsigned 32 bits as signed, and leaves 16 bits of WhiteIsZero inverted."""
    tags = image.tag_v2
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and tags.get(_BITS, (0,))[0] == 32:
        return Image.fromarray(np.asarray(image).view(np.uint32).astype(np.float64) / 2**32)
    if image.mode == "I;16" and tags.get(_PHOTOMETRIC) == 0:
        return Image.fromarray(65535 - np.asarray(image))
    return image


def decode_deep_tiff(data: bytes, limits: Limits, name: str) -> np.ndarray:
    """Samples that Pillow has no mode for (floats and 32 bits in colour, 64 bits), by OpenCV; alpha is left out.

    Returns uint8 (H, W, 3). Raises MediaError('bomb' | 'unsupported'), and UnidentifiedImageError for a damaged header.
    """
    tags = ImageFileDirectory_v2(data[:8])
    tags.load(_at(data, tags.next))
    if not {_WIDTH, _HEIGHT} <= tags.keys():
        raise UnidentifiedImageError("no size")
    limits.check_size(int(tags[_WIDTH]), int(tags[_HEIGHT]), name)
    samples = None
    if tags.get(_PLANAR, 1) == 1:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise MediaError("unsupported", _unsupported_tiff(name, tags))
    pixels = scaled_to_8_bits(samples if samples.ndim == 2 else samples[..., 2::-1])
    return upright(pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), int(tags.get(_TURN, 1)))


def _unsupported_tiff(name: str, tags: Any) -> str:
    bits, form = tags.get(_BITS, (1,)), _FORMS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "other")
    layout = "separate planes" if tags.get(_PLANAR) == 2 else "one plane"
    return (
        f"{name} is a tiff of {len(bits)} x {bits[0]}-bit {form} samples in {layout} (photometric {tags.get(_PHOTOMETRIC)}, "
        f"compression {tags.get(_COMPRESSION)}), which no decoder here reads; convert it to 8 or 16 bits, interleaved."
    )


def _at(data: bytes, offset: int) -> io.BytesIO:
    file = io.BytesIO(data)
    file.seek(offset)
    return file
