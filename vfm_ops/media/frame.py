"""What is made of one decoded picture while its pixels are hot: views, JPEG, whole pixels. The same code runs in a
decoder process and in line; only the small results travel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.images import JpegHeader, decode_image, read_jpeg_header
from vfm_ops.media.jpeg import encode_jpeg, keeps_original
from vfm_ops.media.limits import Limits
from vfm_ops.media.sniff import sniff
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View


@dataclass(frozen=True)
class DecodeSettings:
    """What to make of every frame.

    views: name -> View, one for each model that needs pixels. decoder: auto, pyav, decord or opencv.
    jpeg, jpeg_quality, jpeg_max_side: the stored JPEG. pixels: the whole RGB picture.
    """

    views: Mapping[str, View] = field(default_factory=dict)
    decoder: str = "auto"
    jpeg: bool = True
    jpeg_quality: int = 90
    jpeg_max_side: int | None = None
    pixels: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.decoder not in ("auto", "pyav", "decord", "opencv"):
            raise UsageError(f"decoder: {self.decoder!r} is unknown; use auto, pyav, decord or opencv.")
        if not 1 <= self.jpeg_quality <= 100:
            raise UsageError(f"jpeg_quality must lie between 1 and 100, not {self.jpeg_quality}.")
        if self.jpeg_max_side is not None and self.jpeg_max_side < 16:
            raise UsageError(f"jpeg_max_side must be at least 16 pixels, not {self.jpeg_max_side}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"views": {k: asdict(v) for k, v in self.views.items()}, "limits": asdict(self.limits)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> DecodeSettings:
        """The inverse of `to_dict`."""
        views = {name: View(**view) for name, view in plain["views"].items()}
        return cls(**(plain | {"views": views, "limits": Limits(**plain["limits"])}))


@dataclass(frozen=True)
class Frame:
    """One still or sampled frame.

    frame_index, pts_s: 0 and 0.0 for an image. width, height: of the upright picture, before any shrinking.
    format: what the file is (`jpeg`, ...), `video` for a sampled frame. jpeg: bytes to store.
    views: name -> uint8 (h, w, 3). pixels: uint8 (H, W, 3). Each None / empty unless asked for.
    """

    frame_index: int
    pts_s: float
    width: int
    height: int
    format: str
    jpeg: bytes | None = None
    views: dict[str, np.ndarray] = field(default_factory=dict)
    pixels: np.ndarray | None = None


def image_frame(source: MediaSource, settings: DecodeSettings) -> Frame:
    """Read and decode one still and make its Frame. Raises MediaError."""
    limits = settings.limits
    data = source.read(limits.max_image_bytes)
    header = read_jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
    kind = sniff(data[:512]) or ""
    if header is not None and not _wants_whole(settings, header):
        reduced = _views_of_jpeg(data, header, settings, source.name)
        width, height = _upright(header)
        return Frame(0, 0.0, width, height, kind, data if settings.jpeg else None, views=reduced)
    rgb = decode_image(data, limits, source.name, 1, header)
    original = data if settings.jpeg and keeps_original(header, settings.jpeg_max_side) else None
    return make_frame(rgb, settings, 0, 0.0, kind, original, source.name)


def make_frame(
    rgb: np.ndarray,
    settings: DecodeSettings,
    frame_index: int,
    pts_s: float,
    format_name: str = "video",
    original_jpeg: bytes | None = None,
    name: str | None = None,
) -> Frame:
    """rgb: uint8 (H, W, 3), upright. original_jpeg: stored instead of a new encoding. name: what messages call it.

    Views are made of the picture that is stored, where one is: what a model sees now is what it would see years later.
    Raises MediaError('view') where something can't be made of sound pixels.
    """
    height, width = rgb.shape[:2]
    name = name or f"frame {frame_index}"
    jpeg = original_jpeg
    if settings.jpeg and jpeg is None:
        with _making("its JPEG", name, width, height):
            jpeg = encode_jpeg(rgb, settings.jpeg_quality, settings.jpeg_max_side)
    header = read_jpeg_header(jpeg) if jpeg is not None and settings.views else None
    if jpeg is None or header is None:
        views = _views(rgb, settings.views, name)
    else:
        views = _views_of_jpeg(jpeg, header, settings, name, rgb if jpeg is original_jpeg else None)
    pixels = rgb if settings.pixels else None
    return Frame(frame_index, pts_s, width, height, format_name, jpeg, views, pixels)


def _views(rgb: np.ndarray, wanted: Mapping[str, View], name: str) -> dict[str, np.ndarray]:
    height, width = rgb.shape[:2]
    views = {}
    for title, view in wanted.items():
        with _making(f"view {title!r} ({view.fit} to {view.height} x {view.width})", name, width, height):
            views[title] = view.apply(rgb)
    return views


def _views_of_jpeg(
    data: bytes, header: JpegHeader, settings: DecodeSettings, name: str, whole: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each view from the JPEG at the scale that the view alone asks for, so that no value depends on what else is made.

    whole: its pixels, where they are there already.
    """
    views: dict[str, np.ndarray] = {}
    for factor in sorted({reduction(header, view) for view in settings.views.values()}):
        wanted = {title: view for title, view in settings.views.items() if reduction(header, view) == factor}
        decoded = whole if factor == 1 and whole is not None else None
        if decoded is None:
            decoded = decode_image(data, settings.limits, name, factor, header)
        views |= _views(decoded, wanted, name)
    return {title: views[title] for title in settings.views}


def jpeg_luma(data: bytes, limits: Limits, name: str = "the picture") -> np.ndarray:
    """Luma of an encoded still as an op sees it by the view `luma`, uint8 (h, w): its measures and hashes compare. Raises
    MediaError.
    """
    settings = DecodeSettings({"luma": View(fit="luma")}, jpeg=False, limits=limits)
    return image_frame(MediaSource(name, data=data), settings).views["luma"][..., 0]


def _wants_whole(settings: DecodeSettings, header: JpegHeader) -> bool:
    """Whether all pixels are needed: to give them, to encode them anew, or since there is nothing to be seen."""
    if settings.pixels or not settings.views:
        return True
    return settings.jpeg and not keeps_original(header, settings.jpeg_max_side)


def _upright(header: JpegHeader) -> tuple[int, int]:
    """Width and height once the picture is turned as its EXIF says."""
    return (header.width, header.height) if header.orientation < 5 else (header.height, header.width)


@contextmanager
def _making(what: str, name: str, width: int, height: int) -> Iterator[None]:
    """An error in here is no damage of the file: it is reported as MediaError('view'). Lack of memory passes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            f"{name} decodes ({width} x {height} pixels), but {what} can't be made of it ({reason}): the file is sound; "
            f"leave out what asks for it, or report this."
        )
        raise MediaError("view", message) from error


def reduction(header: JpegHeader, view: View) -> int:
    """1, 2, 4 or 8: how far a JPEG may be shrunk by its decoder without harm to a view: by half of what the view itself
    averages, so that what it averages stays averaged."""
    most = view.shrinking(header.height, header.width)
    return max([factor for factor in (1, 2, 4, 8) if 2 * factor <= most], default=1)
