"""A set of frame indices kept as intervals: one interval for a video that was streamed from end to end."""

from __future__ import annotations

import bisect


class FrameIntervals:
    """Frame indices seen so far, in memory that does not grow with the video.

    intervals: closed, disjoint, sorted [first, last] pairs.
    limit: beyond so many intervals (a caller who skips frames at random) the two that lie closest become one, so that
        a frame between them counts as seen.
    """

    def __init__(self, intervals: list[list[int]] | None = None, limit: int = 256) -> None:
        self.intervals = [list(pair) for pair in intervals or []]
        self.limit = limit

    def __contains__(self, frame_index: int) -> bool:
        at = bisect.bisect_right(self.intervals, [frame_index, float("inf")]) - 1
        return at >= 0 and self.intervals[at][0] <= frame_index <= self.intervals[at][1]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.intervals)

    def add(self, frame_index: int) -> None:
        """Adds one frame index and joins it with its neighbours."""
        if frame_index in self:
            return
        at = bisect.bisect_right(self.intervals, [frame_index, float("inf")])
        self.intervals.insert(at, [frame_index, frame_index])
        self._join(at)
        self._join(at - 1)
        if len(self.intervals) > self.limit:
            gaps = [b[0] - a[1] for a, b in zip(self.intervals, self.intervals[1:])]
            self._merge(gaps.index(min(gaps)))

    def discard(self, frame_index: int) -> None:
        """Takes one frame index out, where it is in."""
        if frame_index not in self:
            return
        at = bisect.bisect_right(self.intervals, [frame_index, float("inf")]) - 1
        first, last = self.intervals[at]
        rest = [[first, frame_index - 1], [frame_index + 1, last]]
        self.intervals[at : at + 1] = [pair for pair in rest if pair[0] <= pair[1]]

    def copy(self) -> FrameIntervals:
        """An independent copy."""
        return FrameIntervals(self.intervals, self.limit)

    def _join(self, at: int) -> None:
        if 0 <= at < len(self.intervals) - 1 and self.intervals[at][1] + 1 == self.intervals[at + 1][0]:
            self._merge(at)

    def _merge(self, at: int) -> None:
        self.intervals[at : at + 2] = [[self.intervals[at][0], self.intervals[at + 1][1]]]
