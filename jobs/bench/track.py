"""`vfm bench track`: our tracker beside transformers' session on the same random weights and real frames, alternating."""

from __future__ import annotations

from typing import Any

from jobs.bench.media import read_frames, real_clips


def measure(quick: bool) -> list[dict[str, Any]]:
    """A row a number of objects (frames/s and ratios), then rows of resident memory; `quick` leaves memory out."""
    from vfm_ops.track.benchmark import bench_track

    report = bench_track(
        None, list(read_frames(real_clips()[0], 120)), timed_frames=20 if quick else 60, memory=not quick
    )
    return [*report["speed"], *([report["memory"]] if report["memory"] else [])]
