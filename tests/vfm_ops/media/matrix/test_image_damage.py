"""Damaged stills: what comes out is what a strict decoder sees, or a sentence. Nobody trains on half a picture unawares."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import chaos_count
from tests.vfm_ops.media.matrix.image_files import (
    FORMATS,
    encoded,
    exif_block,
    heic,
    mutations,
    png_chunk,
    psnr,
    strict_ffmpeg,
    strict_pillow,
    textured,
)
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.images import decode_image
from vfm_ops.media.jpeg import read_jpeg_header
from vfm_ops.media.limits import Limits
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.second_opinion import ffmpeg_agrees_on_heic
from vfm_ops.media.source import MediaSource

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged tags
AGREE_DB = 35.0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = Limits(max_pixels=4_000_000, deadline_s=60)
    with Sandbox(DecodeSettings(pixels=True, jpeg=False, limits=limits)) as pool:
        yield pool


@pytest.mark.chaos
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_stills_are_what_a_strict_decoder_sees_or_refused(sandbox, kind, capsys):
    sound, other = FORMATS[kind](textured()), FORMATS[kind](np.ascontiguousarray(textured()[::-1, ::-1]))
    broken = mutations(sound, other, chaos_count(100, 500), seed=zlib.crc32(kind.encode()))
    whole = strict_pillow(sound)
    wrong, done, unlike = [], 0, 0
    for number, (data, result) in enumerate(zip(broken, sandbox.images(MediaSource("x", data=d) for d in broken))):
        if isinstance(result, MediaError):
            assert str(result).endswith("."), result
            assert result.kind not in ("crash", "timeout", "view"), (number, result)
            continue
        done += 1
        unlike += psnr(result.pixels, whole) < AGREE_DB
        if not any(_sees(judge(data), result.pixels) for judge in (strict_pillow, strict_ffmpeg)):
            wrong.append(number)
    print(
        f"{kind}: {len(broken)} damaged, {done} done (of these {unlike} unlike the sound one, as judges see them, too)"
    )
    assert not wrong
    assert done < len(broken)


def _sees(seen: np.ndarray | None, pixels: np.ndarray) -> bool:
    return seen is not None and psnr(pixels, seen) >= AGREE_DB


def broken_at(data: bytes, share: float, length: int = 24) -> bytes:
    """Bytes in the middle of the pixels' data overwritten with ones that no entropy coder would write there."""
    at = int(len(data) * share)
    return data[:at] + b"\x5a" * length + data[at + length :]


def jpeg_ended_early(share: float, **options) -> bytes:
    """The rest of the picture's data is gone, the end marker is there: what libjpeg fills with grey."""
    data = encoded(textured(240, 320), "JPEG", quality=90, **options)
    return data[: int(len(data) * share)] + b"\xff\xd9"


def jpeg_with_a_foreign_marker() -> bytes:
    data = encoded(textured(240, 320), "JPEG", quality=90)
    at = int(len(data) * 0.4)
    return data[:at] + b"\xff\xc4\x00\x02" + data[at:]


def jpeg_with_a_lost_interval() -> bytes:
    """Restart markers, one interval left out."""
    rst = [cv2.IMWRITE_JPEG_RST_INTERVAL, 5]
    data = cv2.imencode(".jpg", textured(240, 320), rst)[1].tobytes()
    first, second = (data.index(bytes([0xFF, 0xD0 + n]), len(data) // 3) for n in (2, 3))
    return data[:first] + data[second:]


def png_with_damaged_pixels_that_inflate() -> bytes:
    """Stored without compression, so that only the checksum tells."""
    rows = b"".join(b"\0" + row.tobytes() for row in textured())
    body = bytearray(zlib.compress(rows, 0))
    sound = png_chunk(b"IDAT", bytes(body))
    body[len(body) // 2] ^= 0x80
    head = encoded(textured(), "PNG")[:33]
    return head + sound[:8] + bytes(body) + sound[-4:] + png_chunk(b"IEND", b"")


LIES = {
    "jpeg, ended after a third": lambda: jpeg_ended_early(0.33),
    "jpeg, ended near its end": lambda: jpeg_ended_early(0.97),
    "jpeg, progressive, ended in a scan": lambda: jpeg_ended_early(0.6, progressive=True),
    "jpeg, grey": lambda: _ended(encoded(textured()[..., 0], "JPEG", quality=90)),
    "jpeg, cmyk": lambda: _ended(encoded(Image.fromarray(textured()).convert("CMYK"), "JPEG", quality=90)),
    "jpeg, a table in the middle": jpeg_with_a_foreign_marker,
    "jpeg, an interval lost": jpeg_with_a_lost_interval,
    "png, a pixel changed": png_with_damaged_pixels_that_inflate,
    "tiff of jpegs, one broken": lambda: broken_at(
        encoded(textured(), "TIFF", compression="jpeg", quality=95), 0.4, 400
    ),
}


def test_slices_of_a_heic_that_its_decoder_conceals_are_noticed():
    """Not all damage can be: where the broken bits still decode, every decoder sees the same picture."""
    sound, noticed = heic(textured()), 0
    for share in np.linspace(0.3, 0.9, 30):
        at = int(len(sound) * share)
        broken = sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :]
        assert strict_pillow(broken) is not None, "its own decoder refuses it: nothing is concealed"
        try:
            decode_image(broken, Limits())
        except MediaError as error:
            noticed += "two decoders see different pictures" in str(error)
    assert noticed >= 3


@pytest.mark.parametrize("turn", [1, 3, 6])
@pytest.mark.parametrize("tile_size", [0, 64])
def test_one_block_that_differs_from_what_ffmpeg_sees_is_noticed(turn, tile_size):
    """Phones store tiles and a rotation; a concealed slice may be as small as one block of one tile."""
    data = heic(textured(130, 200), tile_size=tile_size, exif=exif_block(turn), chroma=420)
    seen = strict_pillow(data)
    assert ffmpeg_agrees_on_heic(data, seen) is True
    concealed = seen.copy()
    concealed[64:80, 96:112] = 128 + (concealed[64:80, 96:112] < 128) * np.uint8(60)
    assert ffmpeg_agrees_on_heic(data, concealed) is False


def _ended(jpeg: bytes) -> bytes:
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


@pytest.mark.parametrize("case", LIES)
def test_a_decoder_that_goes_on_past_damage_is_not_believed(case):
    with pytest.raises(MediaError) as caught:
        decode_image(LIES[case](), Limits(), "half.img")
    assert caught.value.kind == "damaged"
    assert "half.img" in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("where", [0.02, 0.5, 0.97], ids=["head", "middle", "tail"])
def test_a_file_without_its_rest_is_refused(kind, where):
    data = FORMATS[kind](textured())
    with pytest.raises(MediaError) as caught:
        decode_image(data[: int(len(data) * where)], Limits())
    assert caught.value.kind in ("truncated", "damaged", "not_media")


def test_uncommon_subsampling_is_read_where_it_is_whole():
    """TurboJPEG has no name for chroma that is sampled more finely than luma; FFmpeg says whether the data is whole."""
    data = jpeg_of_uncommon_subsampling()
    assert read_jpeg_header(data) is not None
    assert psnr(decode_image(data, Limits()), np.full((64, 96, 3), 128, np.uint8)) >= 40
    with pytest.raises(MediaError, match="broken picture data"):
        decode_image(data[:-220] + b"\xff\xd9", Limits())


def jpeg_of_uncommon_subsampling() -> bytes:
    """A flat grey JPEG stored as RGB, whose header is rewritten to 1x1, 2x2, 2x2: all components share one table and all
    blocks are the same, so it stays valid as long as there are enough of them.
    """
    data = bytearray(encoded(Image.new("RGB", (96, 96), (128, 128, 128)), "JPEG", quality=90, keep_rgb=True))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 64, 96)
    for component, factors in enumerate((0x11, 0x22, 0x22)):
        data[at + 11 + 3 * component] = factors
    return bytes(data)
