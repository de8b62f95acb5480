"""JPEG files: what their markers say, strict decoding, and the JPEG that is stored with a frame.

libjpeg goes on where the picture's data is broken (what is missing is grey) and only warns. Here any warning is an error:
half a picture is not a picture. What the markers say besides the picture (EXIF, profiles, thumbnails, comments) may be
damaged as it likes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vfm_ops.errors import MediaError
from vfm_ops.media.colour import profiled_rgb, srgb_array
from vfm_ops.media.orientation import exif_orientation, upright, xmp_orientation
from vfm_ops.media.second_opinion import ffmpeg_accepts_jpeg

_SOS, _DQT, _DHT, _DRI, _DAC, _APP0, _APP1, _APP2, _APP14 = 0xDA, 0xDB, 0xC4, 0xDD, 0xCC, 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_END = b"\xff\xd9"


@dataclass(frozen=True)
class JpegHeader:
    """What the markers before the first scan say. orientation: of EXIF or XMP, 1 = upright. scan: offset of the first scan.
    icc: the colour profile, when it is whole.
    """

    width: int
    height: int
    components: int
    precision: int
    coding: int  # low nibble of SOF: 0 baseline, 1 extended, 2 progressive, others are rare
    orientation: int
    adobe_transform: int | None
    scan: int
    icc: bytes | None = None

    @property
    def is_plain(self) -> bool:
        """Eight-bit grey or YCbCr that every decoder reads alike."""
        rgb_stored = self.components == 3 and self.adobe_transform == 0
        return self.precision == 8 and self.coding in (0, 1, 2) and self.components in (1, 3) and not rgb_stored


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of the segment, its end) up to the first scan, whose end is that of its own header."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0 or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            end = at + 2 + (data[at + 2] << 8) + data[at + 3]
            yield marker, at, end
            if marker == _SOS:
                return
            at = end


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Parse markers up to the first scan; None when they are damaged or cut."""
    transform, frame, exif, xmp = None, None, None, None
    profile: dict[tuple[int, int], bytes] = {}
    for marker, at, end in _segments(data):
        body = at + 4
        if marker == _SOS:
            if frame is None:
                return None
            orientation = exif_orientation(exif) or xmp_orientation(xmp) or 1
            return JpegHeader(*frame, orientation, transform, at, _joined(profile))
        if marker in _FRAMES and body + 6 <= len(data):
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            frame = (width, height, components, precision, marker & 0x0F)
        elif marker == _APP1 and exif is None and data.startswith(b"Exif\0\0", body):
            exif = data[body:end]
        elif marker == _APP1 and xmp is None and data.startswith(_XMP, body):
            xmp = data[body:end]
        elif marker == _APP2 and data.startswith(_ICC, body) and end - body > 14:
            profile[data[body + 12], data[body + 13]] = data[body + 14 : end]
        elif marker == _APP14 and data.startswith(b"Adobe", body) and end - at >= 16 and body + 11 < len(data):
            transform = data[body + 11]
    return None


def _joined(profile: dict[tuple[int, int], bytes]) -> bytes | None:
    """A profile's numbered pieces; None unless all are there (ICC.1:2010, annex B.4)."""
    if not profile:
        return None
    count = max(count for _, count in profile)
    pieces = [profile.get((number, count)) for number in range(1, count + 1)]
    return b"".join(piece for piece in pieces if piece) if all(pieces) else None


def decode_jpeg(data: bytes, header: JpegHeader, name: str, reduce: int = 1) -> np.ndarray:
    """A whole JPEG to uint8 sRGB (H, W, 3), upright. reduce: 2, 4 or 8 decodes at that fraction of its size (DCT scaling).

    Raises MediaError('truncated' | 'damaged' | 'unsupported').
    """
    if header.precision != 8:
        message = (
            f"{name} is a jpeg of {header.precision} bits a sample, which no decoder here reads; convert it to 8 bits."
        )
        raise MediaError("unsupported", message)
    if data.rfind(_END, header.scan) < 0:
        raise MediaError(
            "truncated", f"{name} is a jpeg that ends before its last row (truncated); copy or download it again."
        )
    stored = _decode_strictly(data, header, reduce)
    pixels = _decode_again(data, header, reduce, stored, name) if isinstance(stored, str) else stored
    if header.components == 4:
        # Adobe's convention, which all writers of CMYK follow: 255 is no ink.
        pixels = srgb_array(Image.fromarray(255 - pixels, "CMYK"), header.icc)
    else:
        pixels = profiled_rgb(pixels, header.icc, gray=header.components == 1)
    return upright(pixels, header.orientation)


def _decode_again(data: bytes, header: JpegHeader, reduce: int, complaint: str, name: str) -> np.ndarray:
    """For damage outside the picture: read the markers that matter alone, and see whether it is whole then."""
    again = _decode_strictly(_bare_jpeg(data, header), header, reduce)
    pixels = _decode_uncommon(data) if isinstance(again, str) and "subsampling" in again else again
    if pixels is None or isinstance(pixels, str):
        message = (
            f"{name} is a jpeg with broken picture data ({complaint}): part would be grey or shifted; fetch it again."
        )
        raise MediaError("damaged", message)
    return pixels


def _decode_strictly(data: bytes, header: JpegHeader, reduce: int) -> np.ndarray | str:
    """Pixels as they are stored, or libjpeg's first complaint."""
    colours = "CMYK" if header.components == 4 else "RGB"
    height, width = -(-header.height // reduce), -(-header.width // reduce)
    try:
        return simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width, min_factor=reduce)
    except KeyError:  # its name for the subsampling is missing
        return "uncommon subsampling"
    except ValueError as error:
        return str(error)


def is_whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG without metadata (a strip of a TIFF) decodes without a complaint."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK" if _components(data) == 4 else "GRAY", fastdct=True, fastupsample=True)
    except KeyError:
        return True
    except ValueError as error:
        return "subsampling" in str(error)
    return True


def _components(data: bytes) -> int:
    header = read_jpeg_header(data)
    return 0 if header is None else header.components


def _bare_jpeg(data: bytes, header: JpegHeader) -> bytes:
    """The picture without what damaged metadata, padding and junk between segments make libjpeg warn of."""
    parts = [b"\xff\xd8"]
    for marker, at, end in _segments(data):
        known_transform = marker == _APP14 and header.adobe_transform in (0, 1, 2)
        if known_transform or marker in _FRAMES or marker in (_DQT, _DHT, _DRI, _DAC):
            parts.append(data[at:end])
        elif marker == _APP0 and data.startswith(b"JFIF\0", at + 4) and end - at >= 18:
            parts.append(data[at : at + 9] + b"\x01\x01" + data[at + 11 : end])
    picture = data[header.scan : data.rfind(_END, header.scan)].rstrip(b"\0")
    if header.coding in (0, 1):  # one scan has all frequencies, whatever its header says
        last = 2 + int.from_bytes(picture[2:4], "big")
        picture = picture[: last - 3] + b"\x00\x3f\x00" + picture[last:]
    return b"".join([*parts, picture, _END])


def _decode_uncommon(data: bytes) -> np.ndarray | None:
    """Sampling factors that TurboJPEG's interface has no name for: Pillow decodes, FFmpeg says whether the data is whole."""
    if not ffmpeg_accepts_jpeg(data):
        return None
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        return np.array(image.convert("RGB"))


def keeps_original(header: JpegHeader | None, max_side: int | None) -> bool:
    """Whether a still's bytes are stored as they are: upright 8-bit YCbCr JPEGs, baseline or progressive, not too big.

    Its colour profile stays with the bytes; decoding them again gives exactly the pixels that the models saw.
    """
    if header is None or not header.is_plain or header.components != 3 or header.orientation != 1:
        return False
    return max_side is None or max(header.width, header.height) <= max_side


def encode_jpeg(rgb: np.ndarray, quality: int = 90, max_side: int | None = None) -> bytes:
    """rgb: uint8 (H, W, 3). Returns a baseline JPEG (4:2:0), its longer side shrunk by area to max_side."""
    height, width = rgb.shape[:2]
    if max_side is not None and max(height, width) > max_side:
        scale = max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()
