"""What a file is, from its first bytes: extensions lie. Nothing that is not listed here is ever given to a decoder.

That also keeps text formats out which FFmpeg would follow to other files and hosts (playlists, concat scripts).
"""

from __future__ import annotations

IMAGE_FORMATS = frozenset({"jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic"})
VIDEO_FORMATS = frozenset({"mp4", "matroska", "avi", "mpeg", "mpegts", "flv", "ogg", "asf"})

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpeg"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
)
_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"heim": "heic",
    b"heis": "heic",
    b"hevc": "heic",
    b"hevx": "heic",
    b"mif1": "heic",
    b"msf1": "heic",
}
_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})


def sniff(head: bytes) -> str | None:
    """Format of the bytes: one of IMAGE_FORMATS or VIDEO_FORMATS, or None. head: the first 64 bytes or more.

    MPEG transport streams repeat a sync byte every 188 (or 192) bytes: they need the first 400 to be told for sure.
    """
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return name
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12])
    # "BM" alone is two letters of text: the reserved words and the header's size must fit too.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "bmp"
    if head[4:8] == b"ftyp":
        return _brand(head)
    if head[4:8] in _ATOMS:
        return "mp4"
    return "mpegts" if _has_sync_bytes(head) else None


_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def _brand(head: bytes) -> str:
    """ISO base media: the major brand decides; the generic image brands look for AVIF among the compatible ones."""
    major, size = head[8:12], min(int.from_bytes(head[:4], "big"), len(head))
    brands = [major] + [head[i : i + 4] for i in range(16, size - 3, 4)]
    name = _BRANDS.get(major, "mp4")
    if major in (b"mif1", b"msf1"):
        return "avif" if {b"avif", b"avis"} & set(brands) else "heic"
    return name


def _has_sync_bytes(head: bytes) -> bool:
    for start, step in ((0, 188), (4, 192), (0, 204)):
        positions = range(start, len(head), step)
        if len(positions) >= 2 and all(head[i] == 0x47 for i in positions):
            return True
    return False


def media_type(head: bytes) -> str | None:
    """`image`, `video` or None, from the first bytes."""
    name = sniff(head)
    if name in IMAGE_FORMATS:
        return "image"
    return "video" if name in VIDEO_FORMATS else None
