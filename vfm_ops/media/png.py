"""What of a PNG makes its picture, taken apart from its metadata.

Decoders read every chunk and refuse the file for a damaged comment or a large profile; and they don't check the CRCs of
what does count, the pixel data. So chunks are read here: those that make the picture must be sound, and a decoder is
given nothing else. Orientation and profile are taken where they can be read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from vfm_ops.errors import MediaError

_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_METADATA = frozenset({b"eXIf", b"iCCP", b"iTXt", b"zTXt"})
_MAX_METADATA = 4 * 2**20  # inflated: a comment must not cost more memory than a picture
_PACKED_GRAY = (b"\2\0", b"\4\0")  # bit depth and colour type
_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class PngParts:
    """picture: a PNG of the chunks that make the picture alone. exif, icc, xmp: inflated; None when absent or unreadable."""

    picture: bytes
    exif: bytes | None
    icc: bytes | None
    xmp: bytes | None


def read_png(data: bytes, name: str) -> PngParts:
    """data: a file that starts with PNG's signature. Raises MediaError('truncated' | 'damaged' | 'unsupported')."""
    view = memoryview(data)
    picture, at = [view[:8]], 8
    metadata: dict[str, bytes] = {}
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        if kind == b"IEND":
            break
        if end > len(data):
            if kind in _PICTURE or not _has_pixels(picture):
                raise MediaError("truncated", _truncated(name))
            break
        if kind in _PICTURE or kind in _METADATA:
            sound = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
            if kind in _PICTURE:
                _require(sound, kind, name)
                picture.append(_scaled_key(data) if kind == b"tRNS" and data[24:26] in _PACKED_GRAY else view[at:end])
            elif sound:
                metadata.update(_read_metadata(kind, bytes(view[at + 8 : end - 4])))
        elif not kind[0] & 0x20:  # an upper-case first letter: can't be shown without it
            raise MediaError(*_unknown(kind, name))
        at = end
    if not _has_pixels(picture):
        raise MediaError("truncated", _truncated(name))
    return PngParts(b"".join([*picture, _END]), metadata.get("exif"), metadata.get("icc"), metadata.get("xmp"))


def _has_pixels(picture: list[memoryview]) -> bool:
    return bytes(picture[-1][4:8]) == b"IDAT"


def _scaled_key(data: bytes) -> memoryview:
    """The transparent grey of 2 or 4 bits as one of 8: Pillow widens the pixels and forgets it."""
    at = data.index(b"tRNS")
    key = int.from_bytes(data[at + 4 : at + 6], "big") * 255 // ((1 << data[24]) - 1)
    body = b"tRNS" + key.to_bytes(2, "big")
    return memoryview(b"\0\0\0\2" + body + zlib.crc32(body).to_bytes(4, "big"))


def _truncated(name: str) -> str:
    return f"{name} is a png that ends before its last row (truncated); copy or download it again."


def _require(sound: bool, kind: bytes, name: str) -> None:
    if not sound:
        message = (
            f"{name} is a png whose {kind.decode()} chunk has a wrong checksum: its pixels are damaged; fetch it again."
        )
        raise MediaError("damaged", message)


def _unknown(kind: bytes, name: str) -> tuple[str, str]:
    if kind == b"CgBI":
        return "unsupported", f"{name} is a png in Apple's private form (CgBI); convert it to a standard png."
    return "damaged", f"{name} is a png with a chunk that no decoder knows ({kind!r}); fetch or export it again."


def _read_metadata(kind: bytes, body: bytes) -> dict[str, bytes]:
    """One chunk's EXIF, profile or XMP packet; empty when it is something else or can't be inflated."""
    if kind == b"eXIf":
        return {"exif": body}
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iCCP":
        return _found("icc", _inflated(rest[1:]))
    if kind == b"zTXt" and keyword == b"Raw profile type exif":  # ImageMagick's way before eXIf was a standard
        return _found("exif", _unhexed(_inflated(rest[1:])))
    if kind == b"iTXt" and keyword == b"XML:com.adobe.xmp" and len(rest) > 2:
        packet = rest[2:].split(b"\0", 2)[-1]
        return _found("xmp", _inflated(packet) if rest[0] else packet)
    return {}


def _found(name: str, value: bytes | None) -> dict[str, bytes]:
    return {name: value} if value else {}


def _inflated(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA)
    except zlib.error:
        return None


def _unhexed(text: bytes | None) -> bytes | None:
    """Hexadecimal after a name and a length, one a line."""
    try:
        return bytes.fromhex(b"".join((text or b"").split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None
