"""Dense decoders for whole local files: every frame in order. They can't salvage, seek exactly, or read ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.media.limits import Limits
from vfm_ops.media.plan import DecodePlan
from vfm_ops.media.probe import Probe
from vfm_ops.media.source import MediaSource


class OpenCVDecoder:
    """cv2.VideoCapture, in order; unwanted frames are decoded but not converted."""

    def __init__(self, source: MediaSource, probe: Probe, plan: DecodePlan, limits: Limits) -> None:
        self._source, self._probe, self._plan, self._limits = source, probe, plan, limits

    def frames(self, tick: Callable[[], None] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(frame index, upright RGB), ascending. Raises MediaError('truncated' | 'damaged') after the frames it has."""
        with self._source.native_path() as path:
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        given = 0
        try:
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # rotation is ours, so that all decoders agree
            wanted = set(self._plan.wanted.tolist())
            last = int(self._plan.wanted[-1]) if wanted else -1
            for index in range(last + 1):
                if not capture.grab():
                    break
                if tick is not None:
                    tick()
                if index not in wanted:
                    continue
                read, pixels = capture.retrieve()
                if not read:
                    break
                given += 1
                yield index, self._probe.orientation.upright(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()
        _check_complete(self._source, self._probe, given, len(self._plan.wanted))


class DecordDecoder:
    """decord.VideoReader. It knows one video stream only and no AV1, and applies the rotation itself."""

    def __init__(self, source: MediaSource, probe: Probe, plan: DecodePlan, limits: Limits) -> None:
        self._source, self._probe, self._plan, self._limits = source, probe, plan, limits

    def frames(self, tick: Callable[[], None] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(frame index, upright RGB), ascending. Raises MediaError('truncated' | 'damaged' | 'unsupported')."""
        import decord

        given = 0
        try:
            with self._source.native_path() as path:
                reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            if len(reader) != self._probe.frame_count:
                count = self._probe.frame_count
                message = (
                    f"{self._source.name}: decord counts {len(reader)} frames, demuxing {count}; use decoder: pyav."
                )
                raise MediaError("unsupported", message)
            # In order, frame by frame: its seeking is not exact where groups of pictures are open.
            wanted = set(self._plan.wanted.tolist())
            for index in range(max(wanted, default=-1) + 1):
                picture = reader.next()
                if tick is not None:
                    tick()
                if index in wanted:
                    given += 1
                    yield index, self._turn(picture.asnumpy())
        except decord.DECORDError as error:
            raise MediaError("damaged", _damage(self._source, given, str(error).splitlines()[-1])) from error
        _check_complete(self._source, self._probe, given, len(self._plan.wanted))

    def _turn(self, pixels: np.ndarray) -> np.ndarray:
        upright = (self._probe.height, self._probe.width)
        return pixels if pixels.shape[:2] == upright else self._probe.orientation.upright(pixels)


def dense_backend_reads(backend: str, source: MediaSource, probe: Probe) -> str | None:
    """Why `opencv` or `decord` must not decode this video with exact frame numbers, or None when it may."""
    if source.path is None or source.offset is not None:
        return "it reads whole local files only"
    if probe.cut_short or probe.damage or (probe.packet_rank < 0).any():
        return "the file is damaged, cut short or edited, which PyAV alone follows"
    if probe.streams > 1:
        return "the file holds several video streams and it may take another one"
    if "av1" in probe.codec or "dav1d" in probe.codec:
        return "its build can't be relied on to read AV1"
    if backend == "decord":
        if not any(name in probe.container for name in ("mp4", "matroska")):
            return "it numbers frames exactly in MP4, MOV, MKV and WebM only"
        if not probe.ordered:
            return "the file has no reliable times, and it finds frames by them"
        if not _importable("decord"):
            return "it is not installed (pip install decord)"
        if probe.rotation == 180 or probe.flipped:
            return "it can't be told whether it has turned or mirrored the picture"
    return None


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _damage(source: MediaSource, given: int, reason: Any) -> str:
    return f"{source.name} is damaged ({reason}): the {given} wanted frames before it are kept; fetch it again."


def _check_complete(source: MediaSource, probe: Probe, given: int, wanted: int) -> None:
    if given < wanted:
        raise MediaError("damaged", _damage(source, given, f"{wanted - given} wanted frames are missing"))
