"""What the two sides of a decoder process agree on: the shape of messages, and frames and probes as plain values."""

from __future__ import annotations

import struct
from typing import Any

from vfm_ops.media.frame import Frame
from vfm_ops.media.probe import Probe

REQUEST = struct.Struct("<QQQQQ")  # number, slab, slab size; offset and length of the JSON in the slab
REPLY = struct.Struct("<QQQQ")  # number, slab size, bytes of it that are used; length of the JSON that follows

# Words (uint64) of the control page: a counter that grows while there is progress, and what is being worked on.
PROGRESS, ITEM, REQUEST_ID = 0, 1, 2


def frame_to_list(frame: Frame) -> list[Any]:
    """Plain values, arrays as they are."""
    views = list(frame.views.items())
    size = [frame.frame_index, frame.pts_s, frame.width, frame.height, frame.format]
    return [*size, frame.jpeg, views, frame.pixels]


def frame_from_list(values: list[Any]) -> Frame:
    """The inverse of `frame_to_list`."""
    index, pts_s, width, height, kind, jpeg, views, pixels = values
    return Frame(index, pts_s, width, height, kind, jpeg, dict(views), pixels)


def probe_from_dict(plain: dict[str, Any]) -> Probe:
    """A Probe over copies of a message's arrays."""
    arrays = {name: plain[name].copy() for name in ("pts", "packet_rank", "packet_key")}
    return Probe(**(plain | arrays | {"time_base": tuple(plain["time_base"])}))
