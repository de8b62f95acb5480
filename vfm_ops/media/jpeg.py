"""The JPEG that is stored with a frame: the original bytes where they already are one, else a fresh encoding."""

from __future__ import annotations

import cv2
import numpy as np

from vfm_ops.media.images import JpegHeader


def keeps_original(header: JpegHeader | None, max_side: int | None) -> bool:
    """Whether a still's bytes are stored as they are: upright 8-bit YCbCr JPEGs, baseline or progressive, not too big.

    Its colour profile stays with the bytes; decoding them again gives exactly the pixels that the models saw.
    """
    if header is None or not header.is_plain or header.components != 3 or header.orientation != 1:
        return False
    return max_side is None or max(header.width, header.height) <= max_side


def encode_jpeg(rgb: np.ndarray, quality: int = 90, max_side: int | None = None) -> bytes:
    """rgb: uint8 (H, W, 3). Returns a baseline JPEG (4:2:0), its longer side shrunk by area to max_side."""
    height, width = rgb.shape[:2]
    if max_side is not None and max(height, width) > max_side:
        scale = max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()
