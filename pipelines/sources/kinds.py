"""What a name says about a file: image, video, a container of further items, or nothing that we take."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from vfm_ops.media.sniff import media_type as sniff_media_type


def words(text: str) -> frozenset[str]:
    """The words of a text: a readable way to write a set of many."""
    return frozenset(text.split())


IMAGE = words("jpg jpeg jpe jfif pjpeg png apng webp gif bmp dib tif tiff avif heic heif hif")
VIDEO = words("mp4 m4v mov qt mkv webm avi divx mpg mpeg mpe m1v m2v vob 3gp 3g2 flv f4v ogv wmv asf m2ts mts ts")
# Also the ending of TypeScript and Qt translation sources: the content decides whether it is text.
AMBIGUOUS = frozenset({"ts"})
CONTAINERS = {"tar": "tar", "parquet": "parquet", "pq": "parquet", "lance": "lance"}
COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
# Never opened to look inside. What is in none of these lists is told by its first bytes.
NOT_MEDIA = words(
    """txt json jsonl ndjson csv tsv md rst tex log xml html htm css js jsx tsx yaml yml toml ini cfg conf lock
    py pyc pyi ipynb c h cc cpp hpp cu rs go java rb pl sh bat sql proto r m mat
    srt vtt ass sub cls idx lst list
    npy npz pt pth ckpt safetensors onnx pkl pickle h5 hdf5 arrow feather db sqlite tfrecord
    zip gz tgz bz2 tbz2 xz txz zst tzst lz4 7z rar iso dmg deb rpm whl jar
    wav mp3 flac aac m4a ogg oga opus wma aif aiff mid
    pdf doc docx xls xlsx ppt pptx odt svg eps ai psd ttf otf woff woff2
    so o a dll exe dylib class tmp bak part crdownload torrent url ds_store"""
)

SNIFF_BYTES = 512


def extension(name: str) -> str:
    """Lower-case extension without the dot; empty when there is none."""
    stem, dot, ext = name.rpartition(".")
    return ext.lower() if dot and stem else ""


def container_of(name: str) -> str | None:
    """`tar`, `parquet` or `lance` when the name says that further items lie inside."""
    return CONTAINERS.get(extension(name))


def skip_reason(name: str) -> str:
    """What a file that is no media is counted under: its extension, where that is one."""
    if name.lower().endswith(COMPRESSED_TAR):
        return "compressed archive"
    ext = extension(name)
    return f".{ext}" if ext.isascii() and ext.replace("_", "").isalnum() and len(ext) <= 12 else "no known extension"


def media_type_of(name: str, head: Callable[[], bytes]) -> str | None:
    """`image`, `video`, or None for what is no asset.

    The extension decides, right or wrong: a text named .jpg is an asset, so that processing says what is wrong with it.
    head: reads the first SNIFF_BYTES, called only when the extension tells nothing.
    """
    ext = extension(name)
    if ext in IMAGE:
        return "image"
    if ext in AMBIGUOUS:
        return None if _is_text(head()) else "video"
    if ext in VIDEO:
        return "video"
    return None if ext in NOT_MEDIA else sniff_media_type(head())


def _is_text(head: bytes) -> bool:
    if not head or b"\0" in head:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
