"""Copies between videos, whole or partial: segments that show the same frames at a constant offset in time.

Frames of all videos are matched by hash or embedding. Each match of frame (video a, time s) with (video b, time t) votes
for the offset t - s (a Hough transform with slope 1); along each well-voted offset the matches are joined to runs.
Frames match by content and vote by time, so frame rates may differ and frames may be missing. Slow scenes match at
many offsets: closer matches weigh more, and what a frame can give is shared among all that it matches. A run found
so grows while frames at its offset still match at twice the distance: in fast motion the two samplings see less alike.
A run says that two videos share a stretch; `shown_in` says which of its frames the other video does show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vfm_ops.curate.hashing import hamming, hash_pairs, telling
from vfm_ops.curate.kernels import normalised
from vfm_ops.curate.neighbours import NeighbourOptions, near_duplicate_pairs
from vfm_ops.errors import UsageError


@dataclass(frozen=True)
class VideoFrames:
    """Sampled frames of one video, in order of time.

    pts_s float64 (F,), seconds; hashes uint64 (F,) or (F, 8) dihedral, or embeddings float (F, D), or both.
    """

    pts_s: np.ndarray
    hashes: np.ndarray | None = None
    embeddings: np.ndarray | None = None


class CopySegment(NamedTuple):
    """Seconds [start_a, end_a] of video a show what [start_b, end_b] of video b shows (a < b, list positions)."""

    a: int
    b: int
    start_a: float
    end_a: float
    start_b: float
    end_b: float
    matches: int
    score: float


@dataclass(frozen=True)
class CopyOptions:
    """When matches make a copy.

    radius: bits between hashes. cosine: between embeddings. tolerance_s: how far a match may lie from a run's offset.
    max_gap_s: longest stretch without a match inside a run. min_duration_s, min_matches, min_score: what a run needs;
    score is the share of the run's frames (of the video with fewer of them there) that found their match. min_evidence:
    summed weight of a run's matches; a still picture gives at most 1 however long it stands, so two videos that both
    show black for a while are no copies.
    """

    radius: int = 8
    cosine: float = 0.92
    tolerance_s: float = 0.25
    max_gap_s: float = 2.0
    min_duration_s: float = 1.0
    min_matches: int = 4
    min_score: float = 0.5
    min_evidence: float = 1.5


class _Matches(NamedTuple):
    """Frame matches between one pair of videos: times in a and b, frame numbers in a and b, closeness in (0, 1]; (M,)."""

    s: np.ndarray
    t: np.ndarray
    frame_a: np.ndarray
    frame_b: np.ndarray
    closeness: np.ndarray


def find_video_copies(videos: Sequence[VideoFrames], options: CopyOptions | None = None) -> list[CopySegment]:
    """Segments shared by two videos, longest first for each pair.

    Raises UsageError when a video has neither hashes nor embeddings, or arrays of different lengths.
    """
    options = options or CopyOptions()
    for number, video in enumerate(videos):
        _check(number, video)
    if not videos:
        return []
    owner_F = np.repeat(np.arange(len(videos)), [len(v.pts_s) for v in videos])
    pts_F = np.concatenate([np.asarray(v.pts_s, np.float64) for v in videos])
    first_V = np.cumsum([0] + [len(v.pts_s) for v in videos])
    i, j, closeness = _frame_matches(videos, owner_F, options)
    segments: list[CopySegment] = []
    key = owner_F[i] * len(videos) + owner_F[j]
    order = np.argsort(key, kind="stable")
    cuts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for group in np.split(order, cuts[1:]) if len(order) else []:
        a, b = int(owner_F[i[group[0]]]), int(owner_F[j[group[0]]])
        frame_a, frame_b = i[group] - first_V[a], j[group] - first_V[b]
        matches = _Matches(pts_F[i[group]], pts_F[j[group]], frame_a, frame_b, closeness[group])
        segments.extend(_runs(a, b, videos[a], videos[b], matches, options))
    return segments


def shown_in(
    frames: VideoFrames, other: VideoFrames, span: tuple[float, float], other_span: tuple[float, float], radius: int
) -> np.ndarray:
    """For each frame the frame of another video that shows the same, -1 where none does: int64 (F,).

    span, other_span: seconds of the two videos that a copy segment joins. Shown: within a sampling step of the same
    moment, by telling hashes at most `radius` bits apart, the nearest of them. Both videos need hashes, uint64 (F,).
    """
    found_F = np.full(len(frames.pts_s), -1)
    if frames.hashes is None or other.hashes is None:
        raise UsageError("frames are matched by hashes, which a video lacks")
    inside = (frames.pts_s >= span[0] - 1e-6) & (frames.pts_s <= span[1] + 1e-6) & telling(frames.hashes)
    able = np.flatnonzero(
        (other.pts_s >= other_span[0] - 1e-6) & (other.pts_s <= other_span[1] + 1e-6) & telling(other.hashes)
    )
    reach = max(0.25, _spacing(other.pts_s), _spacing(frames.pts_s)) + 1e-6
    offset = ((other_span[0] - span[0]) + (other_span[1] - span[1])) / 2.0
    for frame in np.flatnonzero(inside):
        near = able[np.abs(other.pts_s[able] - frames.pts_s[frame] - offset) <= reach]
        if len(near):
            bits = hamming(other.hashes[near], frames.hashes[frame])
            if bits.min() <= radius:
                found_F[frame] = near[bits.argmin()]
    return found_F


def _check(number: int, video: VideoFrames) -> None:
    if video.hashes is None and video.embeddings is None:
        raise UsageError(f"video {number} has neither frame hashes nor embeddings to compare")
    for name in ("hashes", "embeddings"):
        column = getattr(video, name)
        if column is not None and len(column) != len(video.pts_s):
            raise UsageError(f"video {number} has {len(video.pts_s)} frame times but {len(column)} {name}")


def _frame_matches(
    videos: Sequence[VideoFrames], owner_F: np.ndarray, options: CopyOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame numbers (over all videos together) of matching frames of different videos, i < j, and their closeness."""
    if all(v.hashes is not None for v in videos):
        found = _hash_matches(np.concatenate([v.hashes for v in videos if v.hashes is not None]), options.radius)
    elif all(v.embeddings is not None for v in videos):
        x_FD = np.concatenate([v.embeddings for v in videos if v.embeddings is not None])
        settings = NeighbourOptions.complete() if len(x_FD) < 20000 else NeighbourOptions()
        # One bit of a hash, or a tenth of the way to the threshold, halves the closeness.
        unit = max(1.0 - options.cosine, 1e-6) / 10.0
        found = [
            (p.i, p.j, 0.5 ** ((1.0 - p.cosine) / unit)) for p in near_duplicate_pairs(x_FD, options.cosine, settings)
        ]
    else:
        raise UsageError("some videos have only hashes and some only embeddings: give all of them the same kind")
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    i, j, closeness = (np.concatenate(column) for column in zip(*found, strict=True))
    other = owner_F[i] != owner_F[j]
    return i[other], j[other], closeness[other]


def _hash_matches(hashes: np.ndarray, radius: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [(p.i, p.j, 0.5 ** p.distance.astype(np.float64)) for p in hash_pairs(hashes, radius)]


def _runs(
    a: int, b: int, video_a: VideoFrames, video_b: VideoFrames, matches: _Matches, options: CopyOptions
) -> list[CopySegment]:
    """Runs along the best-voted offsets; matches of an accepted run vote no more."""
    segments: list[CopySegment] = []
    free_M = np.ones(len(matches.s), bool)
    weight_M = _evidence(matches)
    tried: list[float] = []
    while free_M.any() and len(tried) < 64:
        offset = _best_offset(matches, free_M, weight_M, options.tolerance_s)
        tried.append(offset)
        near_M = free_M & (np.abs(matches.t - matches.s - offset) <= options.tolerance_s)
        run = _longest_run(matches, np.flatnonzero(near_M), options)
        segment = None
        if _run_evidence(matches, run, weight_M) >= options.min_evidence:
            segment = _segment(a, b, video_a, video_b, matches, run, options)
        if segment is None:
            free_M[run if len(run) else near_M] = False
            continue
        segments.append(segment)
        # Whatever else these stretches match, by standing still for instance, is explained by this run.
        inside_a = (matches.s >= segment.start_a - 1e-6) & (matches.s <= segment.end_a + 1e-6)
        inside_b = (matches.t >= segment.start_b - 1e-6) & (matches.t <= segment.end_b + 1e-6)
        free_M &= ~(inside_a | inside_b)
    return sorted(segments, key=lambda s: (s.start_a - s.end_a, s.start_a))


def _evidence(matches: _Matches) -> np.ndarray:
    """Weight of each match: its closeness as a share of all that its frames match, the busier of the two frames."""
    total_a = np.bincount(matches.frame_a, weights=matches.closeness)[matches.frame_a]
    total_b = np.bincount(matches.frame_b, weights=matches.closeness)[matches.frame_b]
    return matches.closeness / np.maximum(total_a, total_b)


def _run_evidence(matches: _Matches, run: np.ndarray, weight_M: np.ndarray) -> float:
    """Sum over the run's frames of their best match's weight, for the video where it is less."""
    sums = []
    for frame_M in (matches.frame_a[run], matches.frame_b[run]):
        best = np.zeros(frame_M.max(initial=0) + 1)
        np.maximum.at(best, frame_M, weight_M[run])
        sums.append(float(best.sum()))
    return min(sums)


def _best_offset(matches: _Matches, free_M: np.ndarray, weight_M: np.ndarray, tolerance_s: float) -> float:
    """The offset t - s with the most weight within the tolerance: bins of half of it, then the weighted mean around."""
    offset_M = (matches.t - matches.s)[free_M]
    weight_M = weight_M[free_M]
    step = tolerance_s / 2.0
    bins = np.round((offset_M - offset_M.min()) / step).astype(np.int64)
    votes = np.bincount(bins, weights=weight_M)
    peak = int(np.argmax(np.convolve(votes, [0.5, 1.0, 0.5], mode="same")))
    near_M = np.abs(bins - peak) <= 1
    return float(np.average(offset_M[near_M], weights=weight_M[near_M]))


def _longest_run(matches: _Matches, index: np.ndarray, options: CopyOptions) -> np.ndarray:
    """The matches, among those near one offset, that follow each other in both videos without a long gap."""
    order = index[np.lexsort((matches.t[index], matches.s[index]))]
    gap = np.maximum(np.diff(matches.s[order]), np.diff(np.maximum.accumulate(matches.t[order])))
    parts = np.split(order, np.flatnonzero(gap > options.max_gap_s) + 1)
    return max(parts, key=lambda part: matches.s[part[-1]] - matches.s[part[0]] if len(part) else -1.0)


def _segment(
    a: int, b: int, video_a: VideoFrames, video_b: VideoFrames, matches: _Matches, run: np.ndarray, options: CopyOptions
) -> CopySegment | None:
    """The run, grown at both ends, as a segment; None where it is too short or too thin."""
    offset = float(np.median(matches.t[run] - matches.s[run]))
    s, t, alike = _along_offset(video_a, video_b, offset, options)
    inside = alike & (s >= matches.s[run].min() - 1e-6) & (s <= matches.s[run].max() + 1e-6)
    if not inside.any():
        return None
    good = np.flatnonzero(alike)
    part = np.concatenate([[0], np.cumsum(np.diff(s[good]) > options.max_gap_s)])
    grown = good[np.isin(part, part[np.isin(good, np.flatnonzero(inside))])]
    low, high = grown[0], grown[-1]
    count, score = len(grown), len(grown) / (high - low + 1)
    if count < options.min_matches or s[high] - s[low] < options.min_duration_s or score < options.min_score:
        return None
    return CopySegment(a, b, float(s[low]), float(s[high]), float(t[low]), float(t[high]), count, float(score))


def _along_offset(
    video_a: VideoFrames, video_b: VideoFrames, offset: float, options: CopyOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of the coarser video each with the other's nearest in time at this offset: times in a, in b, alike or not.

    Alike at twice the distance that matches; the three are in order of time.
    """
    s_F, t_F = np.asarray(video_a.pts_s, np.float64), np.asarray(video_b.pts_s, np.float64) - offset
    coarse_a = _spacing(s_F) >= _spacing(t_F)
    few_F, many_F = (s_F, t_F) if coarse_a else (t_F, s_F)
    right = np.clip(np.searchsorted(many_F, few_F), 1, max(1, len(many_F) - 1))
    nearest = np.where(
        few_F - many_F[right - 1] <= many_F[np.minimum(right, len(many_F) - 1)] - few_F, right - 1, right
    )
    nearest = np.minimum(nearest, len(many_F) - 1)
    reach = max(options.tolerance_s, 0.75 * _spacing(many_F))
    few = np.flatnonzero(np.abs(many_F[nearest] - few_F) <= reach)
    frame_a, frame_b = (few, nearest[few]) if coarse_a else (nearest[few], few)
    return s_F[frame_a], t_F[frame_b] + offset, _alike(video_a, frame_a, video_b, frame_b, options)


def _spacing(pts_F: np.ndarray) -> float:
    return float(np.median(np.diff(pts_F))) if len(pts_F) > 1 else 0.0


def _alike(
    video_a: VideoFrames, frame_a: np.ndarray, video_b: VideoFrames, frame_b: np.ndarray, options: CopyOptions
) -> np.ndarray:
    if video_a.hashes is not None and video_b.hashes is not None:
        a, b = np.asarray(video_a.hashes)[frame_a], np.asarray(video_b.hashes)[frame_b]
        first = a if a.ndim == 1 else a[:, 0]
        distance = hamming(first, b) if b.ndim == 1 else hamming(first[:, None], b).min(axis=1)
        return distance <= 2 * options.radius
    if video_a.embeddings is None or video_b.embeddings is None:
        return np.zeros(len(frame_a), bool)
    x_FD, y_FD = normalised(video_a.embeddings[frame_a]), normalised(video_b.embeddings[frame_b])
    return np.einsum("fd,fd->f", x_FD, y_FD) >= 1.0 - 2.0 * (1.0 - options.cosine)
