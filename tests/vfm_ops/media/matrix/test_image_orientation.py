"""A still comes out as its viewer shows it, by every means that a format has to say which way is up."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.vfm_ops.media.matrix.image_files import (
    encoded,
    exif_block,
    heic,
    picture,
    png_chunk,
    psnr,
    with_jpeg_segment,
    with_png_chunk,
)
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits

# EXIF 2.32, table 6: where the stored first row and first column are to be seen.
AS_SEEN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}


def xmp(turn: int) -> bytes:
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % turn


def png_with_xmp(rgb: np.ndarray, turn: int) -> bytes:
    return with_png_chunk(encoded(rgb, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(turn)))


def png_with_packed_xmp(rgb: np.ndarray, turn: int) -> bytes:
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(turn))
    return with_png_chunk(encoded(rgb, "PNG"), png_chunk(b"iTXt", packed))


def png_by_imagemagick(rgb: np.ndarray, turn: int) -> bytes:
    exif = exif_block(turn)
    text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    return with_png_chunk(encoded(rgb, "PNG"), png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))


def jpeg_exif_beats_xmp(rgb: np.ndarray, turn: int) -> bytes:
    jpeg = with_jpeg_segment(
        encoded(rgb, "JPEG", quality=95), 0xE1, b"Exif\0\0" + exif_block(turn).removeprefix(b"Exif\0\0")
    )
    return with_jpeg_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(turn % 8 + 1))


MEANS: dict[str, tuple[Callable[[np.ndarray, int], bytes], float]] = {
    "jpeg, exif": (lambda p, turn: encoded(p, "JPEG", quality=95, exif=exif_block(turn)), 30),
    "jpeg, xmp": (lambda p, turn: encoded(p, "JPEG", quality=95, xmp=xmp(turn)), 30),
    "jpeg, exif and another xmp": (jpeg_exif_beats_xmp, 30),
    "jpeg in cmyk, exif": (lambda p, turn: encoded(_cmyk(p), "JPEG", quality=95, exif=exif_block(turn)), 28),
    "png, eXIf": (lambda p, turn: encoded(p, "PNG", exif=exif_block(turn)), 99),
    "png, zTXt": (png_by_imagemagick, 99),
    "png, iTXt": (png_with_xmp, 99),
    "png, packed iTXt": (png_with_packed_xmp, 99),
    "webp, exif": (lambda p, turn: encoded(p, "WEBP", lossless=True, exif=exif_block(turn)), 99),
    "webp, xmp": (lambda p, turn: encoded(p, "WEBP", lossless=True, xmp=xmp(turn)), 99),
    "tiff, tag": (lambda p, turn: encoded(p, "TIFF", tiffinfo={274: turn}), 99),
    "tiff by libtiff, tag": (lambda p, turn: encoded(p, "TIFF", compression="tiff_lzw", tiffinfo={274: turn}), 99),
    "avif, irot and imir": (lambda p, turn: encoded(p, "AVIF", quality=95, exif=exif_block(turn)), 30),
    "heic, irot and imir": (lambda p, turn: heic(p, exif=exif_block(turn)), 30),
    "heic in tiles, irot and imir": (lambda p, turn: heic(p, exif=exif_block(turn), tile_size=64), 30),
}


def _cmyk(rgb: np.ndarray):
    from PIL import Image

    return Image.fromarray(rgb).convert("CMYK")


@pytest.mark.parametrize("turn", AS_SEEN)
@pytest.mark.parametrize("means", MEANS)
def test_stills_come_out_upright(means, turn):
    write, decibels = MEANS[means]
    stored = picture()
    seen = decode_image(write(stored, turn), Limits())
    assert psnr(seen, AS_SEEN[turn](stored)) >= decibels
