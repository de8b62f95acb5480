"""Decoders behind one interface: `frames()` yields (frame index, upright uint8 RGB (H, W, 3)) in order, as planned.

PyAV follows any plan and salvages damaged files; OpenCV and decord decode densely. `open_decoder` picks by cost.
"""

from vfm_ops.media.decode.choose import BACKENDS, choose_backend, open_decoder
from vfm_ops.media.decode.dense import DecordDecoder, OpenCVDecoder
from vfm_ops.media.decode.pyav import DecodedFrame, PyAVDecoder

__all__ = [
    "BACKENDS",
    "DecodedFrame",
    "DecordDecoder",
    "OpenCVDecoder",
    "PyAVDecoder",
    "choose_backend",
    "open_decoder",
]
