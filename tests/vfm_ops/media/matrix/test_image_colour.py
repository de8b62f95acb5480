"""Colours, depths, transparency and layouts: each file says one closed-form picture in its own way, and that comes out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.vfm_ops.media.matrix.image_files import encoded, heic, picture, png_chunk, psnr, textured, tiff
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, image_frame
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.source import MediaSource

P = picture()
GRAY = P[..., 0]
GRAY_RGB = np.stack([GRAY] * 3, -1)
HALF = np.dstack([P, np.full(GRAY.shape, 128, np.uint8)])
ON_WHITE = np.rint(P * (128 / 255) + 127.0).astype(np.uint8)
LEFT_CLEAR = np.dstack([P, np.where(np.arange(P.shape[1]) < 48, 0, 255).astype(np.uint8)[None].repeat(len(P), 0)])
LEFT_WHITE = np.where(LEFT_CLEAR[..., 3:] == 0, 255, P).astype(np.uint8)
BLACK_WHITE = np.asarray(Image.fromarray(P).convert("1"))


def png(samples: np.ndarray, depth: int, colour_type: int, *extra: bytes) -> bytes:
    """samples: (H, W) or (H, W, C) of the given bit depth, written without a filter."""
    height, width = samples.shape[:2]
    if depth < 8:
        bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        rows = samples.astype(">u2" if depth == 16 else np.uint8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def one_colour_clear(depth: int) -> tuple[bytes, np.ndarray]:
    """A grey PNG, one of whose greys is transparent, and how it looks on white."""
    gray = GRAY >> (8 - depth) if depth <= 8 else GRAY.astype(np.uint16) * 257
    key = int(gray[5, 7])
    seen = np.rint(gray * (255.0 / ((1 << depth) - 1))).astype(np.uint8)
    seen[gray == key] = 255
    return png(gray, depth, 0, png_chunk(b"tRNS", struct.pack(">H", key))), np.stack([seen] * 3, -1)


# Adam7 (PNG, section 8.2): first row and column of each pass, and the steps between them.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def interlaced() -> bytes:
    passes = [P[top::down, left::right] for top, left, down, right in ADAM7]
    data = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = struct.pack(">IIBBBBB", P.shape[1], P.shape[0], 8, 2, 0, 0, 1)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def palette(kind: str, **options) -> tuple[bytes, np.ndarray]:
    few = Image.fromarray(P).quantize(64)
    return encoded(few, kind, **options), np.asarray(few.convert("RGB"))


def subsampled(flag: int) -> bytes:
    return cv2.imencode(".jpg", P[..., ::-1].copy(), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, flag])[1].tobytes()


def lab() -> bytes:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return encoded(ImageCms.applyTransform(Image.fromarray(P), to_lab), "TIFF")


def as_float(kind: type) -> np.ndarray:
    return (P / 255).astype(kind)


WIDE = P.astype(np.uint16) * 257
WIDE_HALF = HALF.astype(np.uint16) * 257

# What a file holds: (bytes, the pixels that are right, how near in dB). The order is that of docs/media-images.md.
CASES: dict[str, Callable[[], tuple[bytes, np.ndarray, float]]] = {
    "jpeg, progressive": lambda: (encoded(P, "JPEG", quality=95, progressive=True), P, 30),
    "jpeg, 4:4:4": lambda: (encoded(P, "JPEG", quality=95, subsampling=0), P, 35),
    "jpeg, 4:2:2": lambda: (encoded(P, "JPEG", quality=95, subsampling=1), P, 30),
    "jpeg, 4:1:1": lambda: (subsampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411), P, 28),
    "jpeg, 4:4:0": lambda: (subsampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440), P, 30),
    "jpeg, grey": lambda: (encoded(GRAY, "JPEG", quality=95), GRAY_RGB, 35),
    "jpeg, rgb stored": lambda: (encoded(P, "JPEG", quality=95, keep_rgb=True), P, 35),
    "jpeg, cmyk": lambda: (encoded(Image.fromarray(P).convert("CMYK"), "JPEG", quality=95), P, 30),
    "jpeg, several (mpo)": lambda: (encoded(P, "MPO", quality=95, save_all=True, append_images=[_other()]), P, 30),
    "png, interlaced": lambda: (interlaced(), P, 99),
    "png, 16 bits": lambda: (png(WIDE, 16, 2), P, 45),
    "png, grey 16 bits": lambda: (png(WIDE[..., 0], 16, 0), GRAY_RGB, 99),
    "png, grey 4 bits": lambda: (png(GRAY >> 4, 4, 0), np.stack([(GRAY >> 4) * 17] * 3, -1), 99),
    "png, grey 2 bits": lambda: (png(GRAY >> 6, 2, 0), np.stack([(GRAY >> 6) * 85] * 3, -1), 99),
    "png, grey 1 bit": lambda: (png(GRAY >> 7, 1, 0), np.stack([(GRAY >> 7) * 255] * 3, -1), 99),
    "png, palette": lambda: (*palette("PNG"), 99),
    "png, alpha": lambda: (png(HALF, 8, 6), ON_WHITE, 45),
    "png, alpha of 16 bits": lambda: (png(WIDE_HALF, 16, 6), ON_WHITE, 45),
    "png, grey and alpha": lambda: (png(HALF[..., ::3], 8, 4), ON_WHITE[..., :1].repeat(3, -1), 45),
    "png, animated": lambda: (encoded(P, "PNG", save_all=True, append_images=[_other()]), P, 99),
    **{f"png, one of {d}-bit greys clear": lambda d=d: (*one_colour_clear(d), 99) for d in (1, 2, 4, 8, 16)},
    "webp, lossy": lambda: (encoded(P, "WEBP", quality=95), P, 30),
    "webp, lossless": lambda: (encoded(P, "WEBP", lossless=True), P, 99),
    "webp, alpha": lambda: (encoded(LEFT_CLEAR, "WEBP", lossless=True), LEFT_WHITE, 99),
    "webp, animated": lambda: (encoded(P, "WEBP", lossless=True, save_all=True, append_images=[_other()]), P, 99),
    "avif": lambda: (encoded(P, "AVIF", quality=95), P, 35),
    "avif, full range 4:4:4": lambda: (encoded(P, "AVIF", quality=95, subsampling="4:4:4", range="full"), P, 38),
    "avif, limited range": lambda: (encoded(P, "AVIF", quality=95, range="limited"), P, 35),
    "avif, grey": lambda: (encoded(GRAY, "AVIF", quality=95), GRAY_RGB, 35),
    "avif, alpha": lambda: (encoded(LEFT_CLEAR, "AVIF", quality=95), LEFT_WHITE, 25),
    "avif, animated": lambda: (encoded(P, "AVIF", quality=95, save_all=True, append_images=[_other()]), P, 35),
    "heic, 4:2:0": lambda: (heic(P, chroma=420), P, 30),
    "heic, grey": lambda: (heic(Image.fromarray(GRAY)), GRAY_RGB, 35),
    "heic, alpha": lambda: (heic(LEFT_CLEAR), LEFT_WHITE, 25),
    "heic, several": lambda: (heic(P, save_all=True, append_images=[_other()]), P, 35),
    "heic, in tiles": lambda: (heic(textured(130, 200), tile_size=64), textured(130, 200), 28),
    "tiff": lambda: (tiff((P, {})), P, 99),
    "tiff, big": lambda: (encoded(P, "TIFF", big_tiff=True), P, 99),
    "tiff, grey": lambda: (tiff((GRAY, {})), GRAY_RGB, 99),
    "tiff, white is zero": lambda: (tiff((255 - GRAY, {262: 0})), GRAY_RGB, 99),
    "tiff, white is zero, 16 bits": lambda: (tiff((65535 - WIDE[..., 0], {262: 0})), GRAY_RGB, 99),
    "tiff, 16 bits": lambda: (tiff((WIDE, {})), P, 45),
    "tiff, grey 16 bits": lambda: (tiff((WIDE[..., 0], {})), GRAY_RGB, 99),
    "tiff, grey 32 bits": lambda: (tiff((GRAY.astype(np.uint32) * 0x1010101, {})), GRAY_RGB, 55),
    "tiff, 32 bits": lambda: (tiff((P.astype(np.uint32) * 0x1010101, {})), P, 55),
    "tiff, float": lambda: (tiff((as_float(np.float32), {})), P, 55),
    "tiff, double": lambda: (tiff((as_float(np.float64), {})), P, 55),
    "tiff, grey float": lambda: (tiff((as_float(np.float32)[..., 0], {})), GRAY_RGB, 55),
    "tiff, planes": lambda: (tiff((np.ascontiguousarray(P.transpose(2, 0, 1)), {284: 2, 262: 2})), P, 99),
    "tiff, palette": lambda: (*palette("TIFF"), 99),
    "tiff, 1 bit": lambda: (encoded(Image.fromarray(BLACK_WHITE), "TIFF"), _bw(), 99),
    "tiff, fax": lambda: (encoded(Image.fromarray(BLACK_WHITE), "TIFF", compression="group4"), _bw(), 99),
    "tiff, cmyk": lambda: (tiff((np.asarray(Image.fromarray(P).convert("CMYK")), {262: 5})), P, 30),
    "tiff, ycbcr": lambda: (tiff((np.asarray(Image.fromarray(P).convert("YCbCr")), {262: 6, 530: (1, 1)})), P, 35),
    "tiff, lab": lambda: (lab(), P, 30),
    "tiff, alpha": lambda: (tiff((HALF, {338: 2})), ON_WHITE, 45),
    "tiff, premultiplied alpha": lambda: (tiff((_premultiplied(), {338: 1})), ON_WHITE, 45),
    "tiff, jpeg": lambda: (encoded(P, "TIFF", compression="jpeg", quality=95), P, 30),
    **{
        f"tiff, {c}": lambda c=c: (encoded(P, "TIFF", compression=c), P, 99) for c in ("tiff_lzw", "tiff_adobe_deflate")
    },
    **{f"tiff, {c}": lambda c=c: (encoded(P, "TIFF", compression=c), P, 99) for c in ("packbits", "zstd", "lzma")},
    "tiff, pages": lambda: (tiff((P, {}), (_other_array(), {})), P, 99),
    "tiff, thumbnail first": lambda: (tiff((np.ascontiguousarray(P[::2, ::2]), {254: 1}), (P, {})), P, 99),
    "gif": lambda: (*palette("GIF"), 99),
    "gif, animated": lambda: (*palette("GIF", save_all=True, append_images=[_other().quantize(64)]), 99),
    "gif, transparent": lambda: (_clear_gif(), LEFT_WHITE, 25),
    "bmp": lambda: (encoded(P, "BMP"), P, 99),
    "bmp, palette": lambda: (*palette("BMP"), 99),
    "bmp, grey": lambda: (encoded(GRAY, "BMP"), GRAY_RGB, 99),
    "bmp, 1 bit": lambda: (encoded(Image.fromarray(BLACK_WHITE), "BMP"), _bw(), 99),
    "bmp, alpha": lambda: (_bmp_with_alpha(), LEFT_WHITE, 99),
}


def _other() -> Image.Image:
    return Image.fromarray(_other_array())


def _other_array() -> np.ndarray:
    return np.ascontiguousarray(P[::-1])


def _bw() -> np.ndarray:
    return np.stack([BLACK_WHITE.astype(np.uint8) * 255] * 3, -1)


def _premultiplied() -> np.ndarray:
    return np.dstack([np.rint(P * (128 / 255)).astype(np.uint8), HALF[..., 3]])


def _clear_gif() -> bytes:
    return encoded(Image.fromarray(LEFT_CLEAR), "GIF")


def _bmp_with_alpha() -> bytes:
    """A version 4 header with masks: the fourth byte is alpha."""
    height, width = GRAY.shape
    pixels = LEFT_CLEAR[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = (
        struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    )
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_that_the_file_means(case):
    data, right, decibels = CASES[case]()
    assert psnr(decode_image(data, Limits()), right) >= decibels


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (np.ascontiguousarray(WIDE.transpose(2, 0, 1)), {284: 2, 262: 2}),
        (np.ascontiguousarray(as_float(np.float32).transpose(2, 0, 1)), {284: 2, 262: 2}),
        (as_float(np.float16)[..., 0], {}),
        (P, {262: 9}),
    ],
    ids=["planes of 16 bits", "planes of floats", "half floats", "ICC Lab"],
)
def test_what_no_decoder_reads_rightly_is_refused_with_what_it_is(samples, tags):
    with pytest.raises(MediaError, match=r"odd\.tif is a tiff of .* which no decoder here reads; convert it") as caught:
        decode_image(tiff((samples, tags)), Limits(), "odd.tif")
    assert caught.value.kind == "unsupported"


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged: a profile whose effect is known without a colour engine."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = profile[: 128 + 4 + 12 * int.from_bytes(profile[128:132], "big")]
    swapped = table.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return swapped + profile[len(table) :]


def gray_profile(gamma: float) -> bytes:
    """A profile of greys with one exponent (ICC.1:2010, 8.5.2): white point and curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    header = struct.pack(">I4xI4s4s4s", 156 + len(white) + len(curve), 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(
        12
    )
    header += b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + tags + white + curve


PROFILED: dict[str, Callable[[bytes], bytes]] = {
    "jpeg": lambda icc: encoded(P, "JPEG", quality=95, subsampling=0, icc_profile=icc),
    "png": lambda icc: encoded(P, "PNG", icc_profile=icc),
    "png with alpha": lambda icc: encoded(np.dstack([P, np.full_like(GRAY, 255)]), "PNG", icc_profile=icc),
    "webp": lambda icc: encoded(P, "WEBP", lossless=True, icc_profile=icc),
    "avif": lambda icc: encoded(P, "AVIF", quality=95, subsampling="4:4:4", icc_profile=icc),
    "heic": lambda icc: heic(P, icc_profile=icc),
    "tiff": lambda icc: encoded(P, "TIFF", icc_profile=icc),
}


@pytest.mark.parametrize("kind", PROFILED)
def test_colour_profiles_are_applied(kind):
    seen = decode_image(PROFILED[kind](swapped_profile()), Limits())
    assert psnr(seen, P[..., [1, 0, 2]]) >= 30
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, b"no profile at all", own[:200]):
        assert psnr(decode_image(PROFILED[kind](icc), Limits()), P) >= 30


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_profiles_of_greys_are_applied(kind):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    linear = ramp[0] / 255.0
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    options = {"quality": 100} if kind == "JPEG" else {}
    seen = decode_image(encoded(ramp, kind, icc_profile=gray_profile(1.0), **options), Limits())
    assert np.abs(seen[8, 12:, 1] - 255 * srgb[12:]).max() <= 4


def test_a_jpeg_that_is_stored_as_it_is_gives_the_pixels_that_models_saw():
    data = encoded(P, "JPEG", quality=95, icc_profile=swapped_profile())
    frame = image_frame(MediaSource("a.jpg", data=data), DecodeSettings(pixels=True))
    assert frame.jpeg == data
    assert np.array_equal(decode_image(frame.jpeg, Limits()), frame.pixels)
