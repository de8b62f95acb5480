"""Thumbnails of frames, each stored once however often a report shows it, within a budget of bytes."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from pipelines.curation.items import Items
from pipelines.lake import Lake
from vfm_ops.errors import MediaError
from vfm_ops.media.images import decode_image, read_jpeg_header
from vfm_ops.media.limits import Limits

_BATCH = 128


class Thumbnails:
    """JPEG data URLs of items, by number. `budget` bytes in all; beyond it, and where no picture was stored, there is none."""

    def __init__(self, lake: Lake, items: Items, budget: int = 12 << 20, side: int = 88) -> None:
        self.lake, self.items, self.budget, self.side = lake, items, budget, side
        self.urls: list[str] = []
        self._number: dict[int, int] = {}
        self._spent = 0

    def of(self, items: np.ndarray) -> list[int]:
        """Number of each item's thumbnail in `urls`; -1 where it has none."""
        missing = np.array([i for i in dict.fromkeys(items.tolist()) if i not in self._number], np.int64)
        for low in range(0, len(missing), _BATCH):
            part = missing[low : low + _BATCH]
            if self._spent >= self.budget:
                self._number |= dict.fromkeys(part.tolist(), -1)
                continue
            rows = self.lake.take("frames", self.items.row_id[part].tolist(), self.items.version, ["jpeg"])
            for item, jpeg in zip(part.tolist(), rows["jpeg"].to_pylist()):
                self._number[item] = self._add(jpeg)
        return [self._number[i] for i in items.tolist()]

    def _add(self, jpeg: bytes | None) -> int:
        small = shrink(jpeg, self.side) if jpeg is not None else None
        if small is None:
            return -1
        self.urls.append("data:image/jpeg;base64," + base64.b64encode(small).decode())
        self._spent += len(self.urls[-1])
        return len(self.urls) - 1


def shrink(jpeg: bytes, side: int) -> bytes | None:
    """A JPEG whose longer side has `side` pixels; None when it can't be decoded."""
    header = read_jpeg_header(jpeg)
    reduce = 1
    if header is not None:
        while reduce < 8 and max(header.width, header.height) >= 4 * reduce * side:
            reduce *= 2
    try:
        rgb = decode_image(jpeg, Limits(), reduce=reduce)
    except MediaError:
        return None
    scale = min(1.0, side / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 72])
    return bytes(data.tobytes()) if done else None
