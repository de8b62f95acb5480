"""Sound pixels with large, odd or damaged metadata: the picture is what counts, and it comes out."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.vfm_ops.media.matrix.image_files import (
    encoded,
    exif_block,
    heic,
    picture,
    png_chunk,
    psnr,
    tiff,
    with_jpeg_segment,
    with_png_chunk,
)
from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged tags
P = picture()
NOISE = np.random.default_rng(3).bytes(2 << 20)
# A directory that claims 65,535 entries, of which one is there and says: turned by nothing.
BROKEN_EXIF = b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\0\0\0\x01\0\x01\0\0" + b"\xde\xad" * 30


def png(*chunks: bytes) -> bytes:
    return with_png_chunk(encoded(P, "PNG"), b"".join(chunks))


def jpeg(marker: int, body: bytes) -> bytes:
    return with_jpeg_segment(encoded(P, "JPEG", quality=95), marker, body)


def packed_text(key: bytes, text: bytes) -> bytes:
    return png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(text))


def broken_avif_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encoded(P, "AVIF", quality=95, exif=exif.tobytes())
    assert data.count(b"MM\0*") + data.count(b"II*\0") == 1
    return data.replace(b"MM\0*", b"garb").replace(b"II*\0", b"garb")


def jpeg_with(old: bytes, new: bytes) -> bytes:
    data = encoded(P, "JPEG", quality=95)
    assert data.count(old) == 1
    return data.replace(old, new)


CASES: dict[str, Callable[[], bytes]] = {
    "png, profile of 2 MB": lambda: png(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(NOISE))),
    "png, profile that inflates to 60 MB": lambda: png(
        png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(60 << 20), 1))
    ),
    "png, profile that can't be inflated": lambda: png(png_chunk(b"iCCP", b"x\0\0nothing")),
    "png, comment of 2 MB": lambda: png(packed_text(b"k", b"a" * (2 << 20))),
    "png, 68 comments of 1 MB": lambda: png(*(packed_text(b"k%d" % i, b"a" * 10**6) for i in range(68))),
    "png, comment with a wrong checksum": lambda: png(png_chunk(b"tEXt", b"a\0b", crc=0)),
    "png, eXIf of garbage": lambda: png(png_chunk(b"eXIf", b"garbage!")),
    "png, eXIf with a wrong checksum": lambda: png(png_chunk(b"eXIf", exif_block(6), crc=1)),
    "png, empty chunks": lambda: png(*(png_chunk(kind, b"") for kind in (b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"gAMA"))),
    "png, hex that is none": lambda: png(packed_text(b"Raw profile type exif", b"\nexif\n  9\nxyz!")),
    "png, cut inside a comment at the end": lambda: encoded(P, "PNG")[:-12] + png_chunk(b"tEXt", b"a" * 99)[:50],
    "png, junk behind the end": lambda: encoded(P, "PNG") + NOISE[:999],
    "jpeg, EXIF of garbage": lambda: jpeg(0xE1, b"Exif\0\0garbage!"),
    "jpeg, EXIF past its end": lambda: jpeg(0xE1, b"Exif\0\0" + BROKEN_EXIF),
    "jpeg, profile in wrong pieces": lambda: jpeg(0xE2, b"ICC_PROFILE\0\x05\x02abcd"),
    "jpeg, profile of noise": lambda: jpeg(0xE2, b"ICC_PROFILE\0\x01\x01" + NOISE[:60000]),
    "jpeg, JFIF of the future": lambda: jpeg_with(b"JFIF\0\x01\x01", b"JFIF\0\x09\x01"),
    "jpeg, JFIF of the future, progressive": lambda: encoded(P, "JPEG", quality=95, progressive=True).replace(
        b"JFIF\0\x01\x01", b"JFIF\0\x09\x01"
    ),
    "jpeg, Adobe's marker says nonsense": lambda: jpeg(0xEE, b"Adobe\0\x64\0\0\0\0\x09"),
    "jpeg, junk between segments": lambda: jpeg_with(b"\xff\xdb\0\x43\0", b"junk\xff\xdb\0\x43\0"),
    "jpeg, scan header of an odd writer": lambda: jpeg_with(b"\x03\x11\0\x3f\0", b"\x03\x11\0\x00\0"),
    "jpeg, zeros before the end": lambda: encoded(P, "JPEG", quality=95)[:-2] + bytes(400) + b"\xff\xd9",
    "jpeg, a film behind the end": lambda: encoded(P, "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + NOISE[:5000],
    "webp, EXIF of garbage": lambda: encoded(P, "WEBP", quality=95, exif=b"garbage garbage"),
    "webp, EXIF past its end": lambda: encoded(P, "WEBP", quality=95, exif=BROKEN_EXIF),
    "webp, profile of noise": lambda: encoded(P, "WEBP", quality=95, icc_profile=NOISE[:5000]),
    "avif, EXIF of garbage": broken_avif_exif,
    "avif, profile of noise": lambda: encoded(P, "AVIF", quality=95, icc_profile=NOISE[:500]),
    "heic, EXIF of garbage": lambda: heic(P, exif=b"Exif\0\0garbage garbage"),
    "heic, profile of noise": lambda: heic(P, icc_profile=NOISE[:500]),
    "tiff, profile and XMP of another type": lambda: tiff((P, {700: (1, 2, 3, 4), 34675: (9,) * 50})),
    "tiff, EXIF that lies nowhere": lambda: tiff((P, {34665: (60000,), 34853: (60000,), 40965: (60000,)})),
    "tiff by libtiff, EXIF that lies nowhere": lambda: encoded(
        P, "TIFF", compression="tiff_lzw", tiffinfo={34665: 99999}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_metadata_costs_no_picture(case):
    assert psnr(decode_image(CASES[case](), Limits()), P) >= 28


def test_pillow_refuses_what_is_read_here():
    """Else this file would prove nothing: the decoder underneath does stumble over metadata."""
    data = CASES["png, comment of 2 MB"]()
    with pytest.raises((OSError, ValueError, SyntaxError)):
        Image.open(io.BytesIO(data)).load()


def test_a_key_colour_that_is_damaged_is_no_metadata():
    """What is transparent is part of the picture: without it, other pixels would come out."""
    broken = png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3), crc=0)
    with pytest.raises(MediaError, match="tRNS chunk has a wrong checksum"):
        decode_image(with_png_chunk(encoded(P, "PNG"), broken), Limits())
