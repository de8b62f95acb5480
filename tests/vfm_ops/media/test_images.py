"""Stills of every format, upright and in colour; hostile ones refused with a sentence that helps."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.frame import DecodeSettings, image_frame, reduction
from vfm_ops.media.images import decode_image, read_jpeg_header
from vfm_ops.media.jpeg import encode_jpeg, keeps_original
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import media_type, sniff
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View

LIMITS = Limits()


@pytest.fixture(scope="module")
def photo(photographs) -> Image.Image:
    return Image.open(photographs[1]).convert("RGB")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(pixels: np.ndarray, image: Image.Image) -> float:
    assert pixels.dtype == np.uint8
    return float(np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean())


@pytest.mark.parametrize(
    ("kind", "options", "name", "tolerance"),
    [
        ("JPEG", {"quality": 95}, "jpeg", 3),
        ("JPEG", {"quality": 95, "progressive": True}, "jpeg", 3),
        ("PNG", {}, "png", 0),
        ("WEBP", {"quality": 95}, "webp", 4),
        ("WEBP", {"lossless": True}, "webp", 0),
        ("GIF", {}, "gif", 12),
        ("BMP", {}, "bmp", 0),
        ("TIFF", {}, "tiff", 0),
        ("TIFF", {"compression": "tiff_lzw"}, "tiff", 0),
        ("AVIF", {"quality": 95}, "avif", 4),
    ],
)
def test_formats_decode_to_the_picture_that_was_saved(photo, kind, options, name, tolerance):
    data = encoded(photo, kind, **options)
    assert sniff(data[:64]) == name
    assert media_type(data[:64]) == "image"
    assert difference(decode_image(data, LIMITS), photo) <= tolerance


def test_heic_decodes(photo):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install pillow-heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo).save(buffer, quality=95)
    assert sniff(buffer.getvalue()[:64]) == "heic"
    assert difference(decode_image(buffer.getvalue(), LIMITS), photo) <= 4


def test_cmyk_jpeg_keeps_its_colours(photo):
    data = encoded(photo.convert("CMYK"), "JPEG", quality=95)
    assert read_jpeg_header(data).components == 4
    assert difference(decode_image(data, LIMITS), photo) <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(photo, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = decode_image(data, LIMITS)
    assert pixels.shape[:2] == upright.size[::-1]
    assert difference(pixels, upright) <= 1
    if kind == "JPEG":
        assert read_jpeg_header(data).orientation == orientation
        assert keeps_original(read_jpeg_header(data), None) == (orientation == 1)


def test_sixteen_bit_and_palette_and_alpha():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    gray = decode_image(encoded(Image.fromarray(ramp), "PNG"), LIMITS)
    assert np.abs(gray[..., 0] - ramp / 257.0).max() <= 1
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.putpixel((3, 3), (0, 0, 0, 255))
    pixels = decode_image(encoded(clear, "PNG"), LIMITS)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [0, 0, 0]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_image(encoded(palette, "PNG"), LIMITS)[0, 0].tolist() == [10, 200, 30]
    see_through = decode_image(encoded(palette, "PNG", transparency=1), LIMITS)
    assert see_through[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encoded(Image.new("L", (9, 5), 77), "JPEG"), LIMITS).shape == (5, 9, 3)
    assert decode_image(encoded(Image.new("1", (9, 5), 1), "PNG"), LIMITS).min() == 255


def png_bomb(width: int, height: int) -> bytes:
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 10**6))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in (*chunks, (b"IEND", b"")):
        parts += [struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(name + body))]
    return b"".join(parts)


@pytest.mark.parametrize("size", [(60_000, 60_000), (60_000, 4), (20_000, 20_000)])
def test_bombs_are_refused_from_their_header(size):
    with pytest.raises(MediaError, match="limit") as caught:
        decode_image(png_bomb(*size), LIMITS)
    assert caught.value.kind == "bomb"
    jpeg = encoded(Image.new("RGB", (64, 64)), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    forged = jpeg[: frame + 5] + struct.pack(">HH", size[1], size[0]) + jpeg[frame + 9 :]
    with pytest.raises(MediaError) as caught:
        decode_image(forged, LIMITS)
    assert caught.value.kind == "bomb"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_stills_say_so(photo, kind, share):
    data = encoded(photo, kind)
    with pytest.raises(MediaError) as caught:
        decode_image(data[: int(len(data) * share)], LIMITS, "cat.img")
    assert caught.value.kind in ("truncated",) if kind != "TIFF" else ("truncated", "damaged")
    assert "cat.img" in str(caught.value)
    assert str(caught.value).endswith(".")


def test_truncated_jpeg_with_a_whole_thumbnail_in_front_is_still_found(photo):
    exif = Image.Exif()
    thumbnail = encoded(photo.resize((64, 64)), "JPEG")
    exif[0x010E] = "x"
    data = encoded(photo, "JPEG", exif=exif, comment=thumbnail)
    with pytest.raises(MediaError) as caught:
        decode_image(data[: len(data) // 2], LIMITS)
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am text" * 9, bytes(range(256)) * 3, b"BM is a word", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "text", "bytes", "word", "stub jpeg", "stub png"],
)
def test_what_is_no_image_gets_a_sentence(data):
    with pytest.raises(MediaError) as caught:
        decode_image(data, LIMITS, "a.jpg")
    assert "a.jpg" in str(caught.value)
    assert caught.value.kind in ("empty", "not_media", "truncated", "damaged")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_noise_inside_any_format_never_escapes_as_another_error(photo):
    small = photo.resize((48, 40))
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        data = np.frombuffer(encoded(small, kind), np.uint8)
        for _ in range(40):
            broken = data.copy()
            where = generator.integers(8, len(data), 12)
            broken[where] = generator.integers(0, 256, 12)
            # Any other error than MediaError would end the test.
            with contextlib.suppress(MediaError):
                assert decode_image(broken.tobytes(), Limits(max_pixels=10**6)).shape[2] == 3


def test_jpegs_that_need_no_change_keep_their_bytes(photo, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photo, "JPEG", quality=80))
    frame = image_frame(MediaSource(str(path)), DecodeSettings(pixels=True))
    assert frame.jpeg == path.read_bytes()
    assert np.array_equal(decode_image(frame.jpeg, LIMITS), frame.pixels)
    shrunk = image_frame(MediaSource(str(path)), DecodeSettings(jpeg_max_side=100))
    assert max(decode_image(shrunk.jpeg, LIMITS).shape) == 100
    assert (shrunk.width, shrunk.height) == photo.size


def test_fresh_encodings_are_faithful(photo):
    rgb = np.asarray(photo)
    assert difference(decode_image(encode_jpeg(rgb, 95), LIMITS), photo) < 4


def test_reduced_decoding_stays_faithful_and_only_where_nothing_needs_more(photo, tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(photo.resize((1920, 1280), Image.Resampling.LANCZOS), "JPEG", quality=92))
    header = read_jpeg_header(path.read_bytes())
    lean = DecodeSettings(views={"m": View()})
    assert reduction(header, View()) == 2
    assert reduction(header, View(interpolation="bicubic")) == reduction(header, View(fit="native")) == 1
    fast = image_frame(MediaSource(str(path)), lean)
    full = image_frame(MediaSource(str(path)), DecodeSettings(pixels=True))
    assert (fast.width, fast.height, fast.jpeg) == (1920, 1280, full.jpeg)
    assert np.abs(fast.views["m"].astype(int) - View().apply(full.pixels)).mean() < 1.0


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_what_a_view_shows_does_not_depend_on_what_else_is_made_nor_on_when(photo, tmp_path, name):
    """An op that comes late sees the stored picture: it must be what the first pass showed it, or values would differ."""
    path = tmp_path / name
    photo.resize((1920, 1280), Image.Resampling.LANCZOS).save(path)
    views = {
        "small": View(),
        "luma": View(fit="luma"),
        "whole": View(fit="native"),
        "fine": View(interpolation="bicubic"),
    }
    first = image_frame(MediaSource(str(path)), DecodeSettings(views=views))
    for title, view in views.items():
        settings = DecodeSettings(views={title: view}, jpeg=False)
        late = image_frame(MediaSource("stored", data=first.jpeg), settings)
        assert np.array_equal(first.views[title], late.views[title]), title


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"decoder": "ffmpeg"}, {"jpeg_quality": 0}, {"jpeg_max_side": 3}):
        with pytest.raises(UsageError):
            DecodeSettings(**wrong)
    with pytest.raises(UsageError, match="max_pixels"):
        Limits(max_pixels=0)


def test_gray_and_colour_jpegs_match_pillow(photographs):
    for path in photographs:
        if Path(path).suffix == ".jpg":
            image = Image.open(path)
            if profile := image.info.get("icc_profile"):
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
            assert difference(decode_image(Path(path).read_bytes(), LIMITS), image) < 0.5


def test_views_have_the_models_geometry(photo):
    rgb = np.asarray(photo)[:, :450]
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = cv2.resize(rgb[top : top + side, left : left + side], (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(View(96, 96).apply(rgb).astype(int) - expected).mean() < 2
    boxed = View(96, 96, fit="letterbox", pad=7).apply(rgb)
    assert (boxed[-1] == 7).all()
    native = View(fit="naflex", patch=16, max_patches=64).apply(rgb)
    assert native.shape[0] % 16 == native.shape[1] % 16 == 0
    assert native.shape[0] * native.shape[1] <= 64 * 256
    assert View(40, 90, fit="squash", interpolation="bicubic").apply(rgb).shape == (40, 90, 3)
