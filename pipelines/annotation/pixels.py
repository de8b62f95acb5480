"""Frames of a lake as annotators see them: in the pixels of the stored frame, to which boxes and masks refer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from pipelines.lake import Lake, make_frame_id
from pipelines.lake.sql import equals
from pipelines.reporting.names import AssetNames
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.video_frames import VideoFrames


@dataclass(frozen=True)
class LakeFrame:
    """A frame of an asset. given: how it was asked for. name: where its file lies."""

    asset_id: str
    frame_index: int
    given: str
    name: str

    @property
    def frame_id(self) -> str:
        """ASSET:INDEX."""
        return make_frame_id(self.asset_id, self.frame_index)


def find_frames(lake: Lake, names: Iterable[str]) -> list[LakeFrame]:
    """Frames by name.

    Args:
        lake: an open lake.
        names: of a still its asset's id or file name, of a frame of a video `NAME:INDEX`; frame ids, too.

    Raises:
        UsageError: there is no such asset, or more than one of that file name; a video, and no frame of it, is named.
    """
    assets = _Assets(lake)
    found = []
    for given in names:
        name, _, index = given.rpartition(":")
        numbered = bool(name) and index.isascii() and index.isdigit()
        asset = assets.find(name if numbered else given)
        if asset["media_type"] == "video" and not numbered:
            raise UsageError(f"{given} is a video: name one of its frames, such as {given}:0")
        place = int(index) if numbered else 0
        found.append(LakeFrame(asset["asset_id"], place, given, asset["member"] or asset["uri"]))
    return found


class _Assets:
    """Rows of `assets` by id, for which no other is read, or by file name."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    @cached_property
    def _names(self) -> AssetNames:
        return AssetNames(self._lake)

    def find(self, name: str) -> dict[str, Any]:
        """UsageError when there is none, or more than one of that file name."""
        rows = self._lake.read("assets", None, equals("asset_id", name)).to_pylist()
        return rows[0] if rows else _asset(self._lake, self._names.find(name))


def read_frames(lake: Lake, frames: Iterable[LakeFrame]) -> Iterator[tuple[LakeFrame, np.ndarray | MediaError]]:
    """Each frame's pixels, RGB uint8 (H, W, 3), or what is wrong with it: the stored picture, else the source, decoded."""
    with Sandbox(DecodeSettings(jpeg=False, pixels=True)) as sandbox:
        for frame in frames:
            try:
                yield frame, _read(lake, frame, sandbox)
            except MediaError as error:
                yield frame, error


def _read(lake: Lake, frame: LakeFrame, sandbox: Sandbox) -> np.ndarray:
    columns = ["jpeg", "width", "height"]
    stored = lake.read("frames", columns, equals("frame_id", frame.frame_id)).to_pylist()
    if stored and stored[0]["jpeg"]:
        return decode_image(stored[0]["jpeg"], Limits(), frame.given)
    asset = _asset(lake, frame.asset_id)
    size = stored_size_of(lake, frame.asset_id)
    if asset["media_type"] == "video":
        with VideoFrames(media_source(asset, RowReader()), sandbox, size=size) as video:
            if frame.frame_index >= len(video):
                raise UsageError(f"{frame.given}: the video has frames 0 to {len(video) - 1}")
            return video[frame.frame_index]
    (found,) = sandbox.images([media_source(asset, RowReader())])
    if isinstance(found, MediaError):
        raise found
    rgb = np.asarray(found.pixels)
    return rgb if size in (None, rgb.shape[1::-1]) else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def lake_video(lake: Lake, name: str, sandbox: Sandbox | None = None) -> tuple[str, VideoFrames]:
    """A video by its asset's id or file name: the id, and its frames, in the size of the stored ones.

    Raises:
        UsageError: there is no such asset, or it is no video.
        MediaError: it can't be decoded.
    """
    asset = _Assets(lake).find(name)
    asset_id = asset["asset_id"]
    if asset["media_type"] == "image":
        raise UsageError(f"{name} is a picture: name a video")
    return asset_id, VideoFrames(media_source(asset, RowReader()), sandbox, size=stored_size_of(lake, asset_id))


def stored_size_of(lake: Lake, asset_id: str) -> tuple[int, int] | None:
    """(width, height) of an asset's stored frames; None where it has none."""
    for table in ("frames", "dropped"):
        whole = f"{equals('asset_id', asset_id)} AND width IS NOT NULL AND height IS NOT NULL"
        for row in lake.read(table, ["width", "height"], whole, limit=1).to_pylist():
            return row["width"], row["height"]
    return None


def _asset(lake: Lake, asset_id: str) -> dict[str, Any]:
    return lake.read("assets", None, equals("asset_id", asset_id)).to_pylist()[0]
