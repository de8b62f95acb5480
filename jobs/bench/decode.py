"""`vfm bench decode`: CPU milliseconds of the decoders on real clips: to open, and per megapixel of a frame."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jobs.bench.media import real_clips
from vfm_ops.media.decode.choose import measure_backends
from vfm_ops.media.source import MediaSource


def measure(quick: bool) -> list[dict[str, Any]]:
    """A row per clip and decoder that can read it: what `decoder: auto` decides by."""
    clips = real_clips()[: 1 if quick else None]
    return [
        {"clip": clip.name, "decoder": name, **asdict(cost)}
        for clip in clips
        for name, cost in measure_backends(MediaSource(str(clip))).items()
    ]
