"""Bytes from a client to pixels, in the killable sandbox. The process that runs a model never decodes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.limits import Limits
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View

NAME = "the uploaded file"
T = TypeVar("T")


class Decoder:
    """Sandboxes of one replica: one for each set of views, and one for whole pictures. Children start when first needed."""

    def __init__(self, limits: Limits, processes: int = 1) -> None:
        self._limits, self._processes = limits, processes
        self._sandboxes: dict[View | None, Sandbox] = {}
        self._lock = threading.Lock()

    def views(self, images: list[bytes], view: View) -> list[np.ndarray | MediaError]:
        """Each image as one model's input, or why it can't be decoded."""
        return [r if isinstance(r, MediaError) else r.views["model"] for r in self._decode(images, view)]

    def pixels(self, images: list[bytes]) -> list[np.ndarray]:
        """Each image as RGB uint8 (H, W, 3). Raises the MediaError of the first that can't be decoded."""
        return [np.asarray(frame.pixels) for frame in checked(self._decode(images, None))]

    def crop_views(self, images: list[bytes], boxes: list[tuple[float, ...]], view: View) -> list[np.ndarray]:
        """A box (xyxy, pixels) of each image as a model's input. MediaError when a box lies outside its image."""
        return [view.apply(crop(rgb, box)) for rgb, box in zip(self.pixels(images), boxes, strict=True)]

    def close(self) -> None:
        """Stops all children."""
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def _decode(self, images: list[bytes], view: View | None) -> list[Frame | MediaError]:
        return list(self._sandbox(view).images([MediaSource(NAME, data=data) for data in images]))

    def _sandbox(self, view: View | None) -> Sandbox:
        with self._lock:
            if view not in self._sandboxes:
                views: Mapping[str, View] = {} if view is None else {"model": view}
                settings = DecodeSettings(views=views, jpeg=False, pixels=view is None, limits=self._limits)
                self._sandboxes[view] = Sandbox(settings, self._processes)
            return self._sandboxes[view]


def checked(results: Sequence[T | MediaError]) -> list[T]:
    """The results when all are; else raises the first MediaError among them, with its position when there are several."""
    kept: list[T] = []
    for result in results:
        if isinstance(result, MediaError):
            raise MediaError(result.kind, f"Image {len(kept)}: {result}" if len(results) > 1 else str(result))
        kept.append(result)
    return kept


def crop(rgb: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """The pixels of a box (xyxy), cut at the picture's border. MediaError('empty') when nothing of it is inside."""
    height, width = rgb.shape[:2]
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if right <= left or bottom <= top:
        raise MediaError("empty", f"The box {list(box)} has no pixel of the {width} x {height} image.")
    return rgb[top:bottom, left:right]


class Thumbnails:
    """Small JPEGs of stored ones, made in a sandbox (a stored JPEG may be the source's own) and kept, up to `most_bytes`."""

    def __init__(self, limits: Limits, side: int = 320, most_bytes: int = 64 << 20) -> None:
        settings = DecodeSettings(jpeg_max_side=side, jpeg_quality=82, limits=limits)
        self._sandbox = Sandbox(settings)
        self._most = most_bytes
        self._kept: dict[str, bytes] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """A thumbnail made before."""
        with self._lock:
            found = self._kept.pop(key, None)
            if found is not None:
                self._kept[key] = found  # now the most recently used
            return found

    def make(self, key: str, data: bytes) -> bytes:
        """A thumbnail of an encoded image. Raises MediaError."""
        made = self._sandbox.image(MediaSource(key, data=data)).jpeg or data
        with self._lock:
            self._kept[key] = made
            self._bytes += len(made)
            while self._bytes > self._most and len(self._kept) > 1:
                oldest = next(iter(self._kept))
                self._bytes -= len(self._kept.pop(oldest))
        return made

    def close(self) -> None:
        """Stops the sandbox."""
        self._sandbox.close()
