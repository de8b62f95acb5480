"""From wanted frames to the least decoding that shows them.

A group of pictures (GOP) starts at a keyframe packet. Groups without a wanted frame are jumped over, a group is left
after its last wanted packet, and within it the packets of unwanted frames may be skipped by the decoder when no other
frame refers to them (`skip_frame = NONREF`): the wanted pixels stay identical.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vfm_ops.media.probe import Probe


@dataclass(frozen=True)
class DecodePlan:
    """wanted: int64, frame indices, ascending. starts, stops: int64 (S,): runs of packets, in decoding order, to feed
    (stop excluded); each starts at a keyframe. needed: bool (P,): packets whose frames are wanted. position: int64 (N,):
    the packet that shows each frame.
    """

    wanted: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    needed: np.ndarray
    position: np.ndarray

    @property
    def packets_fed(self) -> int:
        return int((self.stops - self.starts).sum())


def plan_decode(probe: Probe, indices: np.ndarray | None = None) -> DecodePlan:
    """Plan the frames `indices` (any order, repeats allowed; None: all).

    Raises ValueError for an index outside of the video.
    """
    count, packet_count = probe.frame_count, len(probe.packet_rank)
    wanted = np.arange(count) if indices is None else np.unique(np.asarray(indices, np.int64))
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= count):
        raise ValueError(f"frame indices must lie in [0, {count}), got {wanted[0]} to {wanted[-1]}")
    position = _packet_of_frame(probe)
    needed = np.zeros(packet_count, bool)
    needed[position[wanted]] = True
    none = np.zeros(0, np.int64)
    if not len(wanted):
        return DecodePlan(wanted, none, none, needed, position)
    if not probe.ordered:
        return DecodePlan(wanted, np.zeros(1, np.int64), np.array([packet_count]), needed, position)
    packets = np.sort(position[wanted])
    starts = _start_packets(probe, packets)
    return DecodePlan(wanted, *_merge(starts, packets + 1), needed, position)


def _packet_of_frame(probe: Probe) -> np.ndarray:
    """int64 (N,): the packet that shows each frame."""
    shown = np.flatnonzero(probe.packet_rank >= 0)
    position = np.empty(probe.frame_count, np.int64)
    position[probe.packet_rank[shown]] = shown
    return position


def _start_packets(probe: Probe, packets: np.ndarray) -> np.ndarray:
    """The keyframe packet from which each packet can be decoded.

    A frame that is shown before its group's keyframe (open GOP) refers to the group before: that one is decoded too.
    """
    keys = np.flatnonzero(probe.packet_key)
    if not len(keys):
        return np.zeros_like(packets)
    group = np.maximum(np.searchsorted(keys, packets, side="right") - 1, 0)
    key_rank = probe.packet_rank[keys]
    leads = probe.packet_rank[packets] < key_rank[group]
    return keys[np.maximum(group - leads, 0)]


def _merge(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Union of half-open intervals; stops ascend, and touching intervals become one."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    new = np.ones(len(starts), bool)
    new[1:] = starts[1:] > reach[:-1]
    last = np.append(np.flatnonzero(new)[1:] - 1, len(starts) - 1)
    return starts[new], reach[last]
