"""A video as a sequence of frames: any one, in any order; going forward or backward costs one pass of decoding."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.limits import Limits
from vfm_ops.media.probe import Probe
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource

BACKWARD = 16  # frames that are decoded together, and held, while they are asked for in descending order


class VideoFrames:
    """The frames of one video, decoded in a killable process when they are asked for.

    source: the video. sandbox: one with `pixels` that others use too; without, one of its own, which `close` ends. probe:
    saves probing again. size: (width, height) that frames are scaled to. Raises MediaError, here for what is no video, and
    later for a frame that can't be decoded; a file that ends before its header says becomes shorter, and raises IndexError
    as a list does.
    """

    def __init__(
        self,
        source: MediaSource | str,
        sandbox: Sandbox | None = None,
        probe: Probe | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.size = size
        self.source = MediaSource(source) if isinstance(source, str) else source
        self._own = sandbox is None
        self._sandbox = sandbox or frame_sandbox()
        self._held: dict[int, np.ndarray] = {}
        self._ahead: Iterator[Frame] | None = None
        self._next = self._last = -1
        try:
            self.probe = probe or self._sandbox.probe(self.source)
        except BaseException:
            self.close()
            raise
        self._count = self.probe.frame_count

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), upright RGB."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index not in self._held:
            self._held = self._backward(index) if index == self._last - 1 else self._forward(index)
        self._last = index
        return self._held[index]

    def scaled(self, pixels: np.ndarray | None) -> np.ndarray:
        """A decoded frame in the size wanted."""
        rgb = np.asarray(pixels)
        if self.size in (None, rgb.shape[1::-1]):
            return rgb
        return cv2.resize(rgb, self.size, interpolation=cv2.INTER_AREA)

    def stop(self) -> None:
        """Gives the decoder back until another frame is asked for."""
        if self._ahead is not None:
            self._ahead.close()  # type: ignore[attr-defined]
            self._ahead = None

    def close(self) -> None:
        """Stops decoding; frames that were handed out stay valid."""
        self.stop()
        if self._own:
            self._sandbox.close()

    def _forward(self, index: int) -> dict[int, np.ndarray]:
        if self._ahead is None or index != self._next:
            self.stop()
            self._ahead = self._sandbox.frames(self.source, np.arange(index, self._count), self.probe)
        frame = next(self._ahead, None)
        if frame is None:
            self._count = index
            raise IndexError(index)
        self._next = index + 1
        return {index: self.scaled(frame.pixels)}

    def _backward(self, index: int) -> dict[int, np.ndarray]:
        self.stop()
        wanted = np.arange(max(0, index - BACKWARD + 1), index + 1)
        frames = {f.frame_index: self.scaled(f.pixels) for f in self._sandbox.frames(self.source, wanted, self.probe)}
        if index not in frames:
            self._count = index
            raise IndexError(index)
        return frames


def frame_sandbox(limits: Limits | None = None) -> Sandbox:
    """A sandbox that gives whole frames, and measures nothing."""
    return Sandbox(DecodeSettings(jpeg=False, pixels=True, limits=limits or Limits()))
