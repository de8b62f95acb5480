"""The tables of docs/media-images.md say what happens: each row is a file, decoded here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vfm_ops.media.matrix.image_files import (
    FORMATS,
    encoded,
    heic,
    picture,
    png_chunk,
    psnr,
    tiff,
    with_png_chunk,
)
from tests.vfm_ops.media.matrix.test_image_colour import PROFILED, interlaced, png
from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import IMAGE_FORMATS

PAGE = Path(__file__).parents[4] / "docs" / "media-images.md"
P = picture()
GRAY = P[..., 0]
PLANES = np.ascontiguousarray(P.transpose(2, 0, 1))


def twelve_bit_jpeg() -> bytes:
    data = bytearray(encoded(P, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def _several() -> list[bytes]:
    other = [Image.fromarray(np.ascontiguousarray(P[::-1]))]
    kinds = {"PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "TIFF": {}, "MPO": {"quality": 95}}
    files = [encoded(P, kind, save_all=True, append_images=other, **options) for kind, options in kinds.items()]
    return [*files, heic(P, save_all=True, append_images=other)]


# (format, start of the variant) -> files of that kind.
FILES: dict[tuple[str, str], Callable[[], list[bytes]]] = {
    ("jpeg", "baseline"): lambda: [encoded(P, "JPEG", quality=95)],
    ("jpeg", "progressive"): lambda: [encoded(P, "JPEG", quality=95, progressive=True)],
    ("jpeg", "grey"): lambda: [encoded(GRAY, "JPEG", quality=95)],
    ("jpeg", "CMYK"): lambda: [encoded(Image.fromarray(P).convert("CMYK"), "JPEG", quality=95)],
    ("jpeg", "RGB stored"): lambda: [encoded(P, "JPEG", quality=95, keep_rgb=True)],
    ("jpeg", "12 bits"): lambda: [twelve_bit_jpeg()],
    ("png", "1 to 16 bits"): lambda: [
        *(png(GRAY >> (8 - depth), depth, 0) for depth in (1, 2, 4, 8)),
        png(P.astype(np.uint16) * 257, 16, 2),
        encoded(Image.fromarray(P).quantize(64), "PNG"),
        interlaced(),
    ],
    ("png", "Apple's"): lambda: [with_png_chunk(encoded(P, "PNG"), png_chunk(b"CgBI", bytes(4)))],
    ("webp", "lossy"): lambda: [encoded(P, "WEBP", quality=95)],
    ("webp", "lossless"): lambda: [encoded(P, "WEBP", lossless=True)],
    ("avif", "4:2:0"): lambda: [encoded(P, "AVIF", quality=95)],
    ("heic", "single"): lambda: [heic(P), heic(P, tile_size=64)],
    ("tiff", "8 and 16 bits"): lambda: [tiff((P, {})), tiff((P.astype(np.uint16) * 257, {}))],
    ("tiff", "8 bits, separate"): lambda: [tiff((PLANES, {284: 2, 262: 2}))],
    ("tiff", "32-bit"): lambda: [
        tiff((P.astype(np.uint32) * 0x1010101, {})),
        *(tiff(((P / 255).astype(kind), {})) for kind in (np.float32, np.float64)),
    ],
    ("tiff", "more than 8 bits"): lambda: [tiff((PLANES.astype(np.uint16), {284: 2, 262: 2}))],
    ("tiff", "half floats"): lambda: [tiff(((GRAY / 255).astype(np.float16), {}))],
    ("tiff", "BigTIFF"): lambda: [encoded(P, "TIFF", big_tiff=True)],
    ("gif", "palette"): lambda: [encoded(Image.fromarray(P).quantize(64), "GIF")],
    ("bmp", "1 to 32 bits"): lambda: [
        encoded(Image.fromarray(P).convert(mode), "BMP") for mode in ("1", "L", "RGB", "RGBA")
    ],
    ("any", "several"): _several,
    ("any", "one pixel thin"): lambda: [
        encoded(picture(90, 1), kind) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")
    ],
    ("any", "over"): lambda: [write(picture(8, 2100)) for write in FORMATS.values()],
    ("any", "cut short"): lambda: [
        _cut(FORMATS[kind](P)) for kind in ("jpeg", "png", "webp", "avif", "heic", "gif", "bmp")
    ],
    ("any", "pixel data broken"): lambda: [FORMATS["jpeg"](P)[:-200] + b"\xff\xd9", _flipped(FORMATS["png"](P))],
    ("any", "EXIF, XMP"): lambda: [write(b"nonsense" * 9) for write in PROFILED.values()],
}


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def rows() -> list[tuple[str, str, str]]:
    """(format, variant, outcome) of the first table."""
    table = PAGE.read_text().split("|---|---|---|\n")[1].split("\n\n")[0]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]  # type: ignore[misc]


def test_every_format_and_every_file_has_a_row():
    documented = {kind for kind, _, _ in rows()}
    assert documented - {"any"} == IMAGE_FORMATS
    assert len(rows()) == len(FILES)
    mentioned = set(re.findall(r"`limits\.(\w+)`", PAGE.read_text()))
    assert mentioned <= set(vars(Limits()))


@pytest.mark.parametrize(("kind", "variant", "outcome"), rows(), ids=lambda text: text[:24])
def test_the_row_is_true(kind, variant, outcome):
    (make,) = (files for (k, start), files in FILES.items() if k == kind and variant.startswith(start))
    for data in make():
        if not outcome.startswith("refused"):
            seen = decode_image(data, Limits())
            assert seen.shape in (P.shape, (90, 1, 3))
            if outcome.startswith("the first"):
                assert psnr(seen, P) > 28
            continue
        limits = Limits(max_side=2000) if "bomb" in outcome else Limits()
        with pytest.raises(MediaError) as caught:
            decode_image(data, limits)
        assert outcome == f"refused: {caught.value.kind}"
