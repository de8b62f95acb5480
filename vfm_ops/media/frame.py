"""What is made of one decoded picture while its pixels are hot: views, quality, hash, JPEG. The same code runs in a
decoder process and in line; only the small results travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.media.images import JpegHeader, decode_image, read_jpeg_header
from vfm_ops.media.jpeg import encode_jpeg, keeps_original
from vfm_ops.media.limits import Limits
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import frame_quality, quality_gray
from vfm_ops.media.sniff import sniff
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View


@dataclass(frozen=True)
class DecodeSettings:
    """What to make of every frame.

    views: name -> View, one for each model that needs pixels. decoder: auto, pyav, decord or opencv.
    jpeg, jpeg_quality, jpeg_max_side: the stored JPEG. quality, phash: whether to measure. pixels: the whole RGB picture.
    """

    views: Mapping[str, View] = field(default_factory=dict)
    decoder: str = "auto"
    jpeg: bool = True
    jpeg_quality: int = 90
    jpeg_max_side: int | None = None
    quality: bool = True
    phash: bool = True
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
    format: what the file is (`jpeg`, ...), `video` for a sampled frame. jpeg: bytes to store. phash: 64 bits.
    quality: see `frame_quality`. views: name -> uint8 (h, w, 3). pixels: uint8 (H, W, 3). Each None / empty unless asked for.
    """

    frame_index: int
    pts_s: float
    width: int
    height: int
    format: str
    jpeg: bytes | None = None
    phash: int | None = None
    quality: dict[str, float] | None = None
    views: dict[str, np.ndarray] = field(default_factory=dict)
    pixels: np.ndarray | None = None


def image_frame(source: MediaSource, settings: DecodeSettings) -> Frame:
    """Read and decode one still and make its Frame. Raises MediaError."""
    limits = settings.limits
    data = source.read(limits.max_image_bytes)
    header = read_jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
    reduce = reduction(header, settings)
    rgb = decode_image(data, limits, source.name, reduce, header)
    original = data if settings.jpeg and keeps_original(header, settings.jpeg_max_side) else None
    upright = rgb.shape[1], rgb.shape[0]
    if header is not None and reduce > 1:
        upright = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
    return make_frame(rgb, settings, 0, 0.0, sniff(data[:512]) or "", original, upright)


def make_frame(
    rgb: np.ndarray,
    settings: DecodeSettings,
    frame_index: int,
    pts_s: float,
    format_name: str = "video",
    original_jpeg: bytes | None = None,
    size: tuple[int, int] | None = None,
) -> Frame:
    """rgb: uint8 (H, W, 3), upright. original_jpeg: stored instead of a new encoding. size: width and height to report."""
    gray = quality_gray(rgb) if settings.quality or settings.phash else None
    jpeg = original_jpeg
    if settings.jpeg and jpeg is None:
        jpeg = encode_jpeg(rgb, settings.jpeg_quality, settings.jpeg_max_side)
    width, height = size or (rgb.shape[1], rgb.shape[0])
    return Frame(
        frame_index,
        pts_s,
        width,
        height,
        format_name,
        jpeg,
        phash(gray) if settings.phash and gray is not None else None,
        frame_quality(gray) if settings.quality and gray is not None else None,
        {name: view.apply(rgb) for name, view in settings.views.items()},
        rgb if settings.pixels else None,
    )


def reduction(header: JpegHeader | None, settings: DecodeSettings) -> int:
    """1, 2, 4 or 8: how far a JPEG may be shrunk by its decoder without harm to anything that is asked for.

    Every view must be a plain area reduction of at least twice that factor, so that what it averages stays averaged;
    whole pixels, a new encoding, quality or a hash need all of them.
    """
    if header is None or settings.pixels or settings.quality or settings.phash or not settings.views:
        return 1
    if settings.jpeg and not keeps_original(header, settings.jpeg_max_side):
        return 1
    smallest = min(_shrinking(view, header) for view in settings.views.values())
    return max([factor for factor in (1, 2, 4, 8) if 2 * factor <= smallest], default=1)


def _shrinking(view: View, header: JpegHeader) -> float:
    """By how much the view shrinks a picture of the header's size at least; 1 where that would be felt."""
    if view.ragged or view.interpolation != "area":
        return 1.0
    short, size = min(header.width, header.height), max(view.height, view.width)
    return short * view.crop_pct / size if view.fit == "crop" else short / size
