"""Judging a candidate: frames to judge on, and how far two results of the same frames are apart."""

from __future__ import annotations

import numpy as np


def min_cosine(outputs: tuple[np.ndarray, ...], reference: tuple[np.ndarray, ...]) -> float:
    """Least cosine over frames and outputs between two results of the same frames, each frame's output flattened."""
    least = 1.0
    for got, want in zip(outputs, reference, strict=True):
        a = np.asarray(got, np.float64).reshape(len(got), -1)
        b = np.asarray(want, np.float64).reshape(len(want), -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-300), np.all(a == b, axis=1))
        least = min(least, float(cosine.min()) if np.isfinite(cosine).all() else -1.0)
    return least


def dead_leaves(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Synthetic frames with the statistics of photographs: opaque discs of power-law radius falling on each other.

    Returns uint8 (count, height, width, 3). The occlusion gives edges at all scales and a spectrum near 1/f
    (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001).
    """
    import cv2

    rng = np.random.default_rng(seed)
    frames = np.empty((count, height, width, 3), np.uint8)
    side = min(height, width)
    for frame in frames:
        canvas = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        # Radii with density r^-3 between 1/60 and 1/2 of the side, by inversion.
        low, high = (side / 60) ** -2, (side / 2) ** -2
        radii = (high + (low - high) * rng.random(600)) ** -0.5
        for radius in radii:
            centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
            cv2.circle(canvas, centre, max(1, int(radius)), tuple(int(c) for c in rng.integers(0, 256, 3)), -1)
        shade = cv2.resize(rng.random((4, 4, 1)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        frame[:] = np.clip(canvas * (0.6 + 0.6 * shade[..., None]) + rng.normal(0, 4, canvas.shape), 0, 255)
    return frames
