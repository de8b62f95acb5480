"""Second opinion on a candidate pair of images: align one to the other, then compare them piece by piece.

An embedding says that two pictures are alike; this says whether they are one picture, cropped, turned a little, flipped,
re-encoded or written on. Alignment: affine, by enhanced correlation (Evangelidis & Psarakis 2008; blind to brightness and
contrast), from a few starts. Score: the typical agreement of the pieces of the overlap, in structure and in tone, so that
a text overlay or a logo spoils some pieces but not the score.
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
    for moving, start in _ranked_starts(a, b)[:2]:
        best = max(best, _aligned_score(a, moving, start))
        if best >= COPY_SCORE:
            break
    return best


def _start(scale: float, x: float, y: float) -> np.ndarray:
    """Warp that shows `scale` of each side; x and y from -1 to 1 say which part."""
    centre, slack = (1.0 - scale) * (SIDE - 1) / 2.0, abs(1.0 - scale) * SIDE / 2.0
    return np.array([[scale, 0.0, centre + x * slack], [0.0, scale, centre + y * slack]], np.float32)


_STARTS = [_start(1.0, 0, 0)] + [_start(s, x, y) for s in (0.8, 1.25) for x in (-0.7, 0, 0.7) for y in (-0.7, 0, 0.7)]
_INSIDE = [cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), warp, (SIDE, SIDE), flags=_INVERSE) for warp in _STARTS]
_INSIDE_QUARTER = [inside[::2, ::2].ravel() > 0.999 for inside in _INSIDE]


def _ranked_starts(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(b or its mirror image, where to start), the best correlated first."""
    fixed_P = np.ascontiguousarray(a[::2, ::2]).ravel()
    ranked = []
    for moving in (b, np.ascontiguousarray(b[:, ::-1])):
        for start, inside in zip(_STARTS, _INSIDE_QUARTER, strict=True):
            shown = cv2.warpAffine(moving, start, (SIDE, SIDE), flags=_INVERSE)[::2, ::2].ravel()[inside]
            fixed, shown = fixed_P[inside] - fixed_P[inside].mean(), shown - shown.mean()
            correlation = float(fixed @ shown) / max(float(np.linalg.norm(fixed) * np.linalg.norm(shown)), 1e-6)
            ranked.append((correlation, moving, start))
    return [(moving, start) for _, moving, start in sorted(ranked, key=lambda entry: -entry[0])]


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
        score = _score_under(warp, a, b)
        best = max(best, score)
        if score > -1.0:
            # Proportions are kept: a stiffer alignment has nothing to mend.
            break
    return best


def _score_under(warp: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    long, short = np.linalg.svd(warp[:, :2], compute_uv=False)
    if long > 1.6 or short < 0.6 or long / short > _STRETCH:
        return -1.0
    moved = cv2.warpAffine(b, warp, (SIDE, SIDE), flags=_INVERSE)
    inside = cv2.warpAffine(np.ones_like(b), warp, (SIDE, SIDE), flags=_INVERSE) > 0.999
    return _local_agreement(a, moved, inside)


def _local_agreement(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Agreement of aligned pictures in structure (median over textured cells); where that is a copy's, in tone too (most of all
    cells), whichever is worse. -1 where less than a sixth of the cells can tell."""
    a_CP, b_CP, whole_C = _cells(a), _cells(b), np.asarray(_cells(inside).all(axis=1))
    flat_a, flat_b = a_CP - a_CP.mean(axis=1, keepdims=True), b_CP - b_CP.mean(axis=1, keepdims=True)
    norm_a, norm_b = np.linalg.norm(flat_a, axis=1), np.linalg.norm(flat_b, axis=1)
    # A cell that is flat in both pictures says nothing; one that is flat in one of them says no.
    textured = whole_C & (np.maximum(norm_a / max(a.std(), 1e-6), norm_b / max(b.std(), 1e-6)) > 0.15 * _CELL)
    if textured.sum() < len(whole_C) / 6:
        return -1.0
    inner = (flat_a * flat_b).sum(axis=1)[textured]
    norm_a, norm_b = norm_a[textured], norm_b[textured]
    # One contrast ratio for the whole picture: a copy's pieces are brighter or duller alike (SSIM's structure term).
    gain = float(np.median(norm_b / np.maximum(norm_a, 1e-6)))
    structure = 2.0 * gain * inner / np.maximum((gain * norm_a) ** 2 + norm_b**2, 1e-6)
    agreement = float(np.median(structure))
    if agreement < COPY_SCORE:
        return agreement  # no copy already: a third of the time would go into saying it twice
    # Two plain shirts have the same outline; their tone still differs inside. 0.15: a residual of a tenth of the contrast
    # counts like COPY_SCORE.
    return min(agreement, 1.0 - 0.15 * _tone_residual(a_CP[whole_C], b_CP[whole_C]))


def _cells(image: np.ndarray) -> np.ndarray:
    """(cells, pixels of a cell)."""
    side = SIDE // _CELL
    return image.reshape(side, _CELL, side, _CELL).transpose(0, 2, 1, 3).reshape(side * side, _CELL * _CELL)


def _tone_residual(a_CP: np.ndarray, b_CP: np.ndarray) -> float:
    """What brightness and contrast don't explain, over the contrast: root mean square of a cell, 70 % of cells are below.

    The two are fitted by reweighted least squares (Huber's weights), so that an overlay does not bend the fit.
    """
    a_P, b_P = a_CP.ravel().astype(np.float64), b_CP.ravel().astype(np.float64)
    weight_P = np.ones_like(a_P)
    gain, offset = 1.0, 0.0
    for _ in range(3):
        mean_a, mean_b = np.average(a_P, weights=weight_P), np.average(b_P, weights=weight_P)
        variance = float((weight_P * (a_P - mean_a) ** 2).sum())
        gain = float((weight_P * (a_P - mean_a) * (b_P - mean_b)).sum()) / max(variance, 1e-6)
        offset = mean_b - gain * mean_a
        error_P = np.abs(b_P - gain * a_P - offset)
        weight_P = 1.0 / np.maximum(1.0, error_P / (3.0 * np.median(error_P) + 1e-3))
    if gain <= 0.0:
        return 9.0
    cell_C = np.sqrt(((b_CP - gain * a_CP - offset) ** 2).mean(axis=1))
    return float(np.quantile(cell_C, 0.7) / (gain * a_CP.std() + 1e-6))
