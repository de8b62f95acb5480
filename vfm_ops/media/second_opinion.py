"""FFmpeg's word on stills whose own decoder goes on past damage without saying so.

HEIC: libde265 conceals broken slices. HEVC is defined to the bit, so on sound data two decoders agree, and where they
don't the file is damaged. JPEGs of uncommon subsampling: FFmpeg can be told to stop at the first error.
"""

from __future__ import annotations

import io
from collections import defaultdict
from typing import Any

import av
import cv2
import numpy as np
from av.error import FFmpegError, InvalidDataError

from vfm_ops.media.orientation import upright

# A damaged block is 8 pixels or more and far off; colour conversions of two decoders differ by a few levels.
_BLOCK, _LEVELS = 8, 8
_MOST_PICTURES = 4  # of the primary one's size: a burst is not decoded for it


def ffmpeg_accepts_jpeg(data: bytes) -> bool:
    """Whether FFmpeg's decoder reads a whole picture without an error."""
    try:
        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.options = {"err_detect": "explode"}
        return bool(decoder.decode(av.Packet(data)))
    except FFmpegError:
        return False


def ffmpeg_agrees_on_heic(data: bytes, rgb: np.ndarray) -> bool | None:
    """Whether FFmpeg sees the picture that was decoded, rgb: uint8 (H, W, 3), upright; None when it can't tell.

    Phones store a grid of tiles. FFmpeg gives them in their order, as they are stored: they are put together here and
    compared in all eight orientations.
    """
    try:
        canvases = _canvases(data, rgb.shape[:2])
    except InvalidDataError:
        return False
    except (FFmpegError, KeyError):  # a feature that FFmpeg lacks; a stream without a picture
        return None
    if not canvases:
        return None
    small = _blocks(rgb)
    turned = (upright(canvas, orientation) for canvas in canvases for orientation in range(1, 9))
    return any(t.shape == rgb.shape and np.abs(_blocks(t) - small).max() <= _LEVELS for t in turned)


def _blocks(rgb: np.ndarray) -> np.ndarray:
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    size = (max(1, width // _BLOCK), max(1, height // _BLOCK))
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA).astype(np.int16)


def _canvases(data: bytes, shape: tuple[int, ...]) -> list[np.ndarray]:
    """What the primary picture may be, as it is stored: whole pictures of its size, and the tiles of a grid put together.

    Thumbnails, depth maps and whatever else the file holds are not decoded.
    """
    with av.open(io.BytesIO(data), format="mov", metadata_errors="replace") as container:
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for stream in container.streams.video:
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}
            sizes[stream.codec_context.height, stream.codec_context.width].append(stream.index)
        grids = [(indices, grid) for size, indices in sizes.items() for grid in _grids(size, len(indices), shape)]
        pictures = _first_pictures(container, {index for indices, _ in grids for index in indices})
    canvases = []
    for indices, (rows, columns, height, width) in grids:
        tiles = [pictures[index] for index in indices]
        canvases += [canvas[:height, :width] for canvas in _joined(tiles, rows, columns)]
    return [np.ascontiguousarray(canvas) for canvas in canvases]


def _grids(size: tuple[int, int], count: int, shape: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(rows, columns, height, width) of the pictures of `shape`, or turned by a quarter, that `count` tiles may make."""
    grids = []
    for height, width in {shape, shape[::-1]}:
        rows, columns = -(-height // max(1, size[0])), -(-width // max(1, size[1]))
        if rows * columns == count or (rows * columns == 1 and count <= _MOST_PICTURES):
            grids.append((rows, columns, height, width))
    return grids


def _joined(tiles: list[np.ndarray], rows: int, columns: int) -> list[np.ndarray]:
    """Row by row; each tile alone where one is all of the picture."""
    if rows * columns == 1:
        return tiles
    lines = [np.concatenate(tiles[row * columns : (row + 1) * columns], 1) for row in range(rows)]
    return [np.concatenate(lines, 0)]


def _first_pictures(container: Any, indices: set[int]) -> dict[int, np.ndarray]:
    """uint8 (H, W, 3) of the first frame of these streams, by index. Raises InvalidDataError at the first error."""
    pictures: dict[int, np.ndarray] = {}
    for packet in container.demux([container.streams[index] for index in indices]) if indices else ():
        for frame in packet.decode():
            pictures.setdefault(packet.stream_index, frame.to_ndarray(format="rgb24"))
    return pictures
