"""Second opinion on a candidate pair of images: align one to the other, then compare them piece by piece.

An embedding says that two pictures are alike; this says whether they are one picture, cropped, turned a little, flipped,
re-encoded or written on. Alignment: affine, by enhanced correlation (Evangelidis & Psarakis 2008; blind to brightness and
contrast), from a few starts. Score: the median, over textured pieces of the overlap, of the local correlation, so that a
text overlay or a logo spoils some pieces but not the score.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 96
_CELL = 12
COPY_SCORE = 0.985
_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_STRETCH = 1.03
"""Copies keep their proportions; two shirts that fit after stretching are two shirts."""


def small_gray(image: np.ndarray) -> np.ndarray:
    """float32 (96, 96) luma, lightly smoothed. image: uint8 RGB (h, w, 3) or gray (h, w)."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), 0.8)


def same_picture_score(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two pictures after alignment, -1 to 1; a copy of one another from about `COPY_SCORE` on.

    a, b: as from `small_gray`. Symmetric up to interpolation. Returns -1 where no alignment is found.
    """
    best = -1.0
    for flipped in (b, np.ascontiguousarray(b[:, ::-1])):
        for start in _ranked_starts(a, flipped)[:3]:
            best = max(best, _aligned_score(a, flipped, start))
            if best >= COPY_SCORE:
                return best
    return best


def _start(scale: float, x: float, y: float) -> np.ndarray:
    """Warp that shows `scale` of each side; x and y from -1 to 1 say which part."""
    centre, slack = (1.0 - scale) * (SIDE - 1) / 2.0, abs(1.0 - scale) * SIDE / 2.0
    return np.array([[scale, 0.0, centre + x * slack], [0.0, scale, centre + y * slack]], np.float32)


_STARTS = [_start(1.0, 0, 0)] + [_start(s, x, y) for s in (0.8, 1.25) for x in (-0.7, 0, 0.7) for y in (-0.7, 0, 0.7)]


def _ranked_starts(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Starting places, the best correlated first."""

    def correlation(warp: np.ndarray) -> float:
        inside = cv2.warpAffine(np.ones_like(b), warp, (SIDE, SIDE), flags=_INVERSE)[::2, ::2].ravel() > 0.999
        moved = cv2.warpAffine(b, warp, (SIDE, SIDE), flags=_INVERSE)[::2, ::2].ravel()[inside]
        fixed = a[::2, ::2].ravel()[inside]
        fixed, moved = fixed - fixed.mean(), moved - moved.mean()
        return float(fixed @ moved / max(float(np.linalg.norm(fixed) * np.linalg.norm(moved)), 1e-6))

    return sorted(_STARTS, key=correlation, reverse=True)


def _aligned_score(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> float:
    """Agreement under the start itself (an overlay pulls the alignment away from it) and under its refinements."""
    best = _score_under(start, a, b)
    for motion in (cv2.MOTION_AFFINE, cv2.MOTION_EUCLIDEAN):
        if best >= COPY_SCORE:
            break
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
        try:
            _, warp = cv2.findTransformECC(a, b, start.copy(), motion, stop, None, 5)
        except cv2.error:
            # ECC gives up on pictures that don't correlate: no alignment, no copy.
            break
        best = max(best, _score_under(warp, a, b))
    return best


def _score_under(warp: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    long, short = np.linalg.svd(warp[:, :2], compute_uv=False)
    if long > 1.6 or short < 0.6 or long / short > _STRETCH:
        return -1.0
    moved = cv2.warpAffine(b, warp, (SIDE, SIDE), flags=_INVERSE)
    inside = cv2.warpAffine(np.ones_like(b), warp, (SIDE, SIDE), flags=_INVERSE) > 0.999
    return _local_agreement(a, moved, inside)


def _local_agreement(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Median correlation over the textured cells of the overlap; -1 where less than a third of the cells can tell."""
    cells = (SIDE // _CELL, _CELL, SIDE // _CELL, _CELL)

    def pieces(image: np.ndarray) -> np.ndarray:
        return image.reshape(cells).transpose(0, 2, 1, 3).reshape(-1, _CELL * _CELL)

    a_CP, b_CP, whole_C = pieces(a), pieces(b), pieces(inside).all(axis=1)
    a_CP = a_CP - a_CP.mean(axis=1, keepdims=True)
    b_CP = b_CP - b_CP.mean(axis=1, keepdims=True)
    norm_a, norm_b = np.linalg.norm(a_CP, axis=1), np.linalg.norm(b_CP, axis=1)
    # A cell that is flat in both pictures says nothing; one that is flat in one of them says no.
    textured = whole_C & (np.maximum(norm_a / max(a.std(), 1e-6), norm_b / max(b.std(), 1e-6)) > 0.15 * _CELL)
    if textured.sum() < len(whole_C) / 6:
        return -1.0
    norm_a, norm_b, inner = norm_a[textured], norm_b[textured], (a_CP * b_CP).sum(axis=1)[textured]
    # One contrast ratio for the whole picture: a copy's pieces are brighter or duller alike (SSIM's structure term).
    gain = float(np.median(norm_b / np.maximum(norm_a, 1e-6)))
    agreement = 2.0 * gain * inner / np.maximum((gain * norm_a) ** 2 + norm_b**2, 1e-6)
    return float(np.median(agreement))
