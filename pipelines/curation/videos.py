"""Copies between videos of a lake: frames of the lesser copy are dropped where they show what the better one shows.

The best videos come first, so that the frames of a better video which another took the place of stand for nothing more.
"""

from __future__ import annotations

import numpy as np

from pipelines.curation.pool import Pool
from vfm_ops.curate.hashing import match_hashes
from vfm_ops.curate.video_copies import CopyOptions, CopySegment, VideoFrames, find_video_copies, shown_in


def drop_video_copies(pool: Pool) -> None:
    """Drops frames in segments that another video shows too: the one with more pixels, then the longer one, stays."""
    settings = pool.recipe.deduplicate.video
    if settings is None:
        return
    frames = np.flatnonzero(pool.items.video & pool.items.hashed)
    frames = frames[np.lexsort((pool.items.pts_s[frames], pool.items.asset[frames]))]
    frames = frames[np.isin(pool.items.asset[frames], _concerned(pool, frames, settings.radius))]
    _, first = np.unique(pool.items.asset[frames], return_index=True)
    of_asset = np.split(frames, first[1:])
    enough = [rows for rows in of_asset if len(rows) >= settings.min_matches]
    if len(enough) < 2:
        return
    videos = [VideoFrames(pool.items.pts_s[rows], pool.items.hash[rows]) for rows in enough]
    options = CopyOptions(
        radius=settings.radius,
        min_duration_s=settings.min_duration_s,
        min_matches=settings.min_matches,
        tolerance_s=max(0.25, 0.6 * _spacing(videos)),
        max_gap_s=max(2.0, 3.0 * _spacing(videos)),
    )
    segments = find_video_copies(videos, options)
    worth = [_worth(pool, rows) for rows in enough]
    for segment in sorted((_better_first(s, worth) for s in segments), key=lambda s: _order(s, worth)):
        _drop_segment(pool, enough, videos, segment, settings.radius)


def _better_first(segment: CopySegment, worth: list[tuple[bool, float, float, float]]) -> CopySegment:
    """The segment with the video that stays as a."""
    if worth[segment.a] >= worth[segment.b]:
        return segment
    return segment._replace(
        a=segment.b,
        b=segment.a,
        start_a=segment.start_b,
        end_a=segment.end_b,
        start_b=segment.start_a,
        end_b=segment.end_a,
    )


def _order(segment: CopySegment, worth: list[tuple[bool, float, float, float]]) -> tuple[float, ...]:
    """Best stayer first, then best leaver, then in time."""
    return (*(-float(v) for v in (*worth[segment.a], *worth[segment.b])), segment.start_b)


def _concerned(pool: Pool, frames: np.ndarray, radius: int) -> np.ndarray:
    """Assets with new frames, and those that share a frame with one of them."""
    new = frames[pool.fresh[frames]]
    old = frames[~pool.fresh[frames]]
    matched = match_hashes(pool.items.hash[old], pool.items.hash[new], radius) if len(new) and len(old) else None
    near = old[matched.i] if matched is not None else old[:0]
    return np.unique(pool.items.asset[np.concatenate([new, near])])


def _spacing(videos: list[VideoFrames]) -> float:
    """Typical seconds between sampled frames: at one frame a second, a match may lie half a second off."""
    return float(np.median([np.median(np.diff(v.pts_s)) for v in videos]))


def _drop_segment(
    pool: Pool, of_video: list[np.ndarray], videos: list[VideoFrames], segment: CopySegment, radius: int
) -> None:
    """Drops the frames of b that a frame of a shows which stays: at most twice the radius apart, as within a run."""
    a, b = of_video[segment.a], of_video[segment.b]
    stays = pool.alive[a] | pool.standing[a]
    standing = VideoFrames(pool.items.pts_s[a][stays], pool.items.hash[a][stays])
    start_s, end_s = segment.start_a, segment.end_a
    span = (segment.start_b, segment.end_b)
    shown = shown_in(videos[segment.b], standing, span, (start_s, end_s), 2 * radius)
    dropped = b[(shown >= 0) & pool.alive[b]]
    name = str(pool.items.asset_ids[int(pool.items.asset[a[0]])].as_py())
    pool.decisions.settle("video_copy", np.sort(dropped), other=[name] * len(dropped), start_s=start_s, end_s=end_s)


def _worth(pool: Pool, rows: np.ndarray) -> tuple[bool, float, float, float]:
    """Standing first, then pixels, duration, and the asset's place in the lake."""
    pixels = float(np.median(pool.items.pixels()[rows]))
    duration = float(np.ptp(pool.items.pts_s[rows]))
    return (bool((~pool.fresh[rows]).any()), pixels, round(duration, 3), -float(pool.items.asset[rows[0]]))
