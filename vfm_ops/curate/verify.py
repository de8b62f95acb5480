"""Second opinion on a candidate pair of images: align one to the other, then compare them piece by piece.

An embedding says that two pictures are alike; this says whether they are one picture, cropped, turned a little, flipped,
re-encoded or written on. Alignment: affine, by enhanced correlation (Evangelidis & Psarakis 2008; blind to brightness and
contrast), from a few starts; where none of them leads anywhere, from the similarity that matched ORB features agree on
(Rublee et al. 2011; RANSAC), which may turn by any angle. Score: the typical agreement of the pieces of the overlap, in
structure and in tone, so that a text overlay or a logo spoils some pieces but not the score. Colours must agree as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vfm_ops.curate.looks import same_colours

SIDE = 96
_CELL = 12
COPY_SCORE = 0.985
_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_STRETCH = 1.03
"""Copies keep their proportions; two shirts that fit after stretching are two shirts."""


Aspects = tuple[float, float]
_FEATURES, _FEATURE_SIDE, _LEAST_INLIERS = 200, 256, 10


_TURNED_MARGIN = 3
"""A turned picture meets its filling, black or white, along its edges, and shrinking mixes the two."""
_TURN_DEGREES, _TURN_LOSS = 8.0, 0.045
"""What resampling along other axes costs the score of a true copy. Two shots of one scene, which score as high, are not
turned against each other by that much."""


@dataclass(frozen=True)
class SmallPicture:
    """A picture as it is compared. gray: float32 (96, 96), see `small_gray`. rgb: uint8 (96, 96, 3). aspect: width over
    height of the picture. points float32 (F, 2), in pixels of gray, and descriptors uint8 (F, 32): its ORB features."""

    gray: np.ndarray
    rgb: np.ndarray
    aspect: float
    points: np.ndarray
    descriptors: np.ndarray


def small_picture(image: np.ndarray) -> SmallPicture:
    """image: uint8 RGB (h, w, 3) or gray (h, w)."""
    rgb = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    height, width = rgb.shape[:2]
    points, descriptors = _features(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    small = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return SmallPicture(small_gray(image), small, width / height, points, descriptors)


def small_gray(image: np.ndarray) -> np.ndarray:
    """float32 (96, 96) luma, lightly smoothed. image: uint8 RGB (h, w, 3) or gray (h, w)."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), 0.8)


def _features(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ORB features of a picture whose longer side becomes 256 pixels: points in pixels of `small_gray`, descriptors."""
    scale = _FEATURE_SIDE / max(gray.shape)
    size = (max(8, round(gray.shape[1] * scale)), max(8, round(gray.shape[0] * scale)))
    shown = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    found, descriptors = cv2.ORB_create(_FEATURES).detectAndCompute(shown, None)  # type: ignore[attr-defined]
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8)
    points = (np.array([f.pt for f in found], np.float32) + 0.5) * SIDE / np.array(size, np.float32) - 0.5
    return points.astype(np.float32), descriptors


def same_picture_score(a: SmallPicture, b: SmallPicture) -> float:
    """Agreement of two pictures after alignment, -1 to 1; a copy of one another from about `COPY_SCORE` on.

    Symmetric up to interpolation. Returns -1 where no alignment is found, or where one is but the colours are others.
    """
    best = -1.0
    for moving, start in _ranked_starts(a.gray, b.gray)[:2]:
        score, warp = _aligned_score(a.gray, moving, start, (a.aspect, b.aspect))
        best = max(best, score)
        if best >= COPY_SCORE:
            mirrored = moving is not b.gray
            return best if _colours_agree(a.rgb, b.rgb[:, ::-1] if mirrored else b.rgb, warp) else -1.0
    turned = _feature_start(a, b)
    # What is not turned the starts above would have found: repeated windows of one wall agree in features as well.
    if turned is not None and _degrees(turned) > _TURN_DEGREES:
        score, warp = _aligned_score(a.gray, b.gray, turned, (a.aspect, b.aspect), _TURNED_MARGIN)
        best = max(best, min(1.0, score + _TURN_LOSS) if _degrees(warp) > _TURN_DEGREES else score)
        if best >= COPY_SCORE and not _colours_agree(a.rgb, b.rgb, warp):
            return -1.0
    return best


def _degrees(warp: np.ndarray) -> float:
    return abs(float(np.degrees(np.arctan2(warp[1, 0], warp[0, 0]))))


def _feature_start(a: SmallPicture, b: SmallPicture) -> np.ndarray | None:
    """The warp that matched features agree on: a turn, a scale and a shift of the picture as it was before it was squeezed
    into a square. None where too few agree."""
    if min(len(a.points), len(b.points)) < _LEAST_INLIERS:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(a.descriptors, b.descriptors)
    if len(matches) < _LEAST_INLIERS:
        return None
    squeeze_a, squeeze_b = (np.array([picture.aspect, 1.0], np.float32) for picture in (a, b))
    from_a = a.points[[m.queryIdx for m in matches]] * squeeze_a
    to_b = b.points[[m.trainIdx for m in matches]] * squeeze_b
    # The generator is OpenCV's own and starts anew in each call: the same pair has the same warp.
    warp, inliers = cv2.estimateAffinePartial2D(from_a, to_b, ransacReprojThreshold=2.5, maxIters=500)
    if warp is None or int(inliers.sum()) < _LEAST_INLIERS:
        return None
    linear = warp[:, :2] * squeeze_a / squeeze_b[:, None]
    return np.concatenate([linear, warp[:, 2:] / squeeze_b[:, None]], axis=1).astype(np.float32)


def _colours_agree(a: np.ndarray, b: np.ndarray, warp: np.ndarray) -> bool:
    moved = cv2.warpAffine(np.ascontiguousarray(b), warp, (SIDE, SIDE), flags=_INVERSE)
    inside = cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), warp, (SIDE, SIDE), flags=_INVERSE)[::4, ::4] > 0.999
    smooth = [cv2.blur(image, (5, 5))[::4, ::4][inside].astype(np.float32) for image in (a, moved)]
    return same_colours(*smooth)


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


def _aligned_score(
    a: np.ndarray, b: np.ndarray, start: np.ndarray, aspects: Aspects, margin: int = 0
) -> tuple[float, np.ndarray]:
    """Agreement under the start itself (an overlay pulls the alignment away from it) and under its refinements; the best, and
    its warp."""
    best, warp_of_best = _score_under(start, a, b, aspects, margin), start
    for motion in (cv2.MOTION_AFFINE, cv2.MOTION_EUCLIDEAN):
        if best >= COPY_SCORE:
            break
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
        try:
            _, warp = cv2.findTransformECC(a, b, start.copy(), motion, stop, None, 5)
        except cv2.error:
            # ECC gives up on pictures that don't correlate: no alignment, no copy.
            break
        score = _score_under(warp, a, b, aspects, margin)
        if score > best:
            best, warp_of_best = score, warp
        if score > -1.0:
            # Proportions are kept: a stiffer alignment has nothing to mend.
            break
    return best, warp_of_best


def _score_under(warp: np.ndarray, a: np.ndarray, b: np.ndarray, aspects: Aspects, margin: int = 0) -> float:
    """margin: pixels at the edges of both that do not count."""
    if not _plausible(warp, aspects):
        return -1.0
    moved = cv2.warpAffine(b, warp, (SIDE, SIDE), flags=_INVERSE)
    inner = np.pad(np.ones((SIDE - 2 * margin, SIDE - 2 * margin), np.float32), margin)
    inside = cv2.warpAffine(inner, warp, (SIDE, SIDE), flags=_INVERSE) > 0.999
    return _local_agreement(a, moved, inside & (inner > 0.0))


def _plausible(warp: np.ndarray, aspects: Aspects) -> bool:
    """Whether a warp keeps proportions, and shows between 0.6 and 1.6 of a side: those of the squares that both pictures are
    squeezed into, or those of the pictures as they were (a turn of an oblong picture is none of its square)."""
    long, short = np.linalg.svd(warp[:, :2], compute_uv=False)
    if long <= _STRETCH * short:
        return bool(long <= 1.6 and short >= 0.6)
    widths_a, widths_b = np.array([aspects[0], 1.0]), np.array([aspects[1], 1.0])
    true_long, true_short = np.linalg.svd(warp[:, :2] * widths_b[:, None] / widths_a, compute_uv=False)
    return bool(true_long <= _STRETCH * true_short and 0.6 <= np.sqrt(long * short) <= 1.6)


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
