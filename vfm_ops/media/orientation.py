"""Which way up a picture is: EXIF's orientation (1 to 8), XMP's, a video's display matrix; and turning pixels by it.

Whatever can't be read counts as upright: metadata never costs a picture.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class Orientation:
    """Turn by `rotation` degrees counter-clockwise (0, 90, 180, 270), then mirror left and right where `flipped`."""

    rotation: int = 0
    flipped: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.rotation % 180 == 90

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: (H, W) or (H, W, C). Returns a contiguous array; the same one where there is nothing to do."""
        if self.rotation:
            pixels = cv2.rotate(pixels, _TURNS[self.rotation])
        return cv2.flip(pixels, 1) if self.flipped else pixels


# EXIF 2.32, table 6: how to turn what is stored to what is to be seen.
_EXIF = {
    1: Orientation(),
    2: Orientation(0, True),
    3: Orientation(180),
    4: Orientation(180, True),
    5: Orientation(270, True),
    6: Orientation(270),
    7: Orientation(90, True),
    8: Orientation(90),
}


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """pixels: (H, W, C), as stored under an EXIF orientation. Returns them as they are to be seen."""
    return _EXIF.get(orientation, Orientation()).upright(pixels)


def exif_orientation(exif: bytes | None) -> int | None:
    """Tag 0x0112 of the first directory of an EXIF block, with or without its `Exif` prefix; None when it has none."""
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return None
    first = struct.unpack_from(order + "I", tiff, 4)[0]
    if first + 2 > len(tiff):
        return None
    count = struct.unpack_from(order + "H", tiff, first)[0]
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        if struct.unpack_from(order + "H", tiff, at)[0] == 0x0112:
            value = struct.unpack_from(order + "H", tiff, at + 8)[0]
            return value if 1 <= value <= 8 else None
    return None


def xmp_orientation(xmp: bytes | None) -> int | None:
    """`tiff:Orientation` of an XMP packet; None when it has none."""
    found = _XMP.search(xmp or b"")
    return int(found[1]) if found else None


def orientation_of(picture: Any) -> Orientation:
    """What the display matrix of an av.VideoFrame says: from the container's header, the codec's messages or EXIF."""
    try:
        matrix = struct.unpack("=9i", bytes(picture.side_data["DISPLAYMATRIX"]))
    except (KeyError, struct.error):
        return Orientation()
    return from_matrix(*matrix[:2], *matrix[3:5])


def from_matrix(a: int, b: int, c: int, d: int) -> Orientation:
    """The symmetry that sends (x, y) to (a x + c y, b x + d y), y downwards, lengths aside (ISO/IEC 14496-12, 6.2.2).

    A matrix that turns by no multiple of 90 degrees, which FFmpeg would fill up with black corners, is left alone.
    """
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 16 * max(abs(b), abs(c)):
        left, up = a < 0, d < 0
        return Orientation(180 if up else 0, left != up)
    if crossed > 16 * max(abs(a), abs(d)):
        left, up = c < 0, b < 0
        return Orientation(90 if up else 270, left == up)
    return Orientation()
