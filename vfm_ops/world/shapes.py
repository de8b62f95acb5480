"""Outlines and fills: a unit outline, a pose and a texture become anti-aliased pixels inside their bounding box.

Outlines are closed contours in a unit disc, y down, filled by the even-odd rule (so that a ring has a hole).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vfm_ops.world.vocabulary import COLOURS, Kind

_SUBPIXEL_BITS = 4  # cv2.fillPoly takes fixed-point coordinates


@dataclass(frozen=True)
class Pose:
    """Where a thing is. cx, cy, radius: of its unit disc in pixels; angle: radians; aspect: width / height."""

    cx: float
    cy: float
    radius: float
    angle: float = 0.0
    aspect: float = 1.0

    def place(self, points_N2: np.ndarray) -> np.ndarray:
        """Unit-disc coordinates (N, 2) to pixels."""
        c, s, stretch = np.cos(self.angle), np.sin(self.angle), np.sqrt(self.aspect)
        rotation = np.array([[c, s], [-s, c]])
        return points_N2 * (stretch, 1 / stretch) @ rotation * self.radius + (self.cx, self.cy)

    def unplace(self, points_N2: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) to unit-disc coordinates."""
        c, s, stretch = np.cos(self.angle), np.sin(self.angle), np.sqrt(self.aspect)
        rotation = np.array([[c, -s], [s, c]])
        return (points_N2 - (self.cx, self.cy)) / self.radius @ rotation / (stretch, 1 / stretch)


def _arc(radius: float, start: float = 0.0, stop: float = 2 * np.pi, n: int = 40, cx: float = 0.0, cy: float = 0.0):
    t = np.linspace(start, stop, n, endpoint=stop - start < 2 * np.pi - 1e-6)
    return np.stack([cx + radius * np.cos(t), cy + radius * np.sin(t)], axis=1)


def _polar(radii: list[float], turn: float = -np.pi / 2) -> np.ndarray:
    t = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.cos(t), np.sin(t)], axis=1) * np.asarray(radii)[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([16 * np.sin(t) ** 3, y - 2.5], axis=1) / 16.5


def _crescent() -> np.ndarray:
    outer = _arc(1.0, 0.25 * np.pi, 1.75 * np.pi, 36, cx=0.15)
    inner = _arc(0.83, 1.68 * np.pi, 0.32 * np.pi, 30, cx=0.42)
    return np.concatenate([outer, inner])


def _capsule() -> np.ndarray:
    right = _arc(0.42, -np.pi / 2, np.pi / 2, 20, cx=0.6)
    return np.concatenate([right, -right])


@functools.cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Contours (N, 2) of one of SHAPES, in a unit disc."""
    a = 0.34
    polygons = {
        "circle": [_arc(0.9)],
        "square": [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.78],
        "triangle": [_polar([1.05, 1.05, 1.05]) + np.array([0, 0.18])],
        "star": [_polar([1.05, 0.44] * 5)],
        "ring": [_arc(0.95), _arc(0.52)],
        "heart": [_heart()],
        "cross": [np.array([[-a, -1], [a, -1], [a, -a], [1, -a], [1, a], [a, a], [a, 1], [-a, 1], [-a, a], [-1, a], [-1, -a],
                            [-a, -a]]) * 0.95],
        "crescent": [_crescent()],
        "arrow": [np.array([[-1, -0.28], [0.1, -0.28], [0.1, -0.78], [1, 0], [0.1, 0.78], [0.1, 0.28], [-1, 0.28]])],
        "capsule": [_capsule()],
    }  # fmt: skip
    return tuple(np.asarray(p, np.float64) for p in polygons[shape])


def blob_outline(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A smooth random closed contour: a few low harmonics on a circle."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r = np.full_like(t, 0.75)
    for k in range(2, 6):
        r += rng.normal(0, 0.22 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    r = np.clip(r, 0.25, 1.05)
    return (np.stack([r * np.cos(t), r * np.sin(t)], axis=1),)


def coverage(
    contours: tuple[np.ndarray, ...], pose: Pose, height: int, width: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Anti-aliased coverage of a posed outline.

    Returns (alpha uint8 (h, w) of the part inside the image, (top, left)); alpha is empty when nothing is inside.
    """
    # cv2's anti-aliased polygons reach 0.6 pixels too far out: measured on circles of 6 to 50 pixels.
    drawn = replace(pose, radius=max(pose.radius - 0.6, 0.5))
    placed = [drawn.place(c) for c in contours]
    points = np.concatenate(placed)
    left, top = np.floor(points.min(0)).astype(int) - 1
    right, bottom = np.ceil(points.max(0)).astype(int) + 2
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), np.uint8), (0, 0)
    alpha = np.zeros((bottom - top, right - left), np.uint8)
    # Pixel i covers [i, i + 1), while OpenCV puts its centre on i: hence the half pixel.
    fixed = [np.round((p - (left + 0.5, top + 0.5)) * 2**_SUBPIXEL_BITS).astype(np.int32) for p in placed]
    cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return alpha, (int(top), int(left))


@dataclass(frozen=True)
class Fill:
    """How a thing is painted. tint: added to the colour; period, phase: of the texture; contrast: of its second colour;
    light: strength and direction of a shading ramp; edge: strength of a dark outline."""

    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    period: float = 0.6
    phase: tuple[float, float] = (0.0, 0.0)
    contrast: float = 0.6
    light: tuple[float, float] = (0.0, 0.0)
    edge: float = 0.0


def paint(kind: Kind, fill: Fill, pose: Pose, top: int, left: int, h: int, w: int) -> np.ndarray:
    """Pixels float32 (h, w, 3) of a textured thing, before its coverage is applied, for the box at (top, left)."""
    ys, xs = np.mgrid[top : top + h, left : left + w] + 0.5
    uv = pose.unplace(np.stack([xs.ravel(), ys.ravel()], 1))
    u, v = uv[:, 0].reshape(h, w), uv[:, 1].reshape(h, w)
    base = np.clip(np.asarray(COLOURS[kind.colour], np.float32) + np.asarray(fill.tint, np.float32), 0, 255)
    # Darker second colour, so that red with white stripes is never mistaken for pink; black alone gets a lighter one.
    other = base + (150 - base) * fill.contrast if kind.colour == "black" else base * (1 - fill.contrast)
    soft = max(1.0 / max(pose.radius, 1.0) / fill.period * 2, 1e-3)  # about one pixel of transition
    mix = _texture(kind.texture, u / fill.period + fill.phase[0], v / fill.period + fill.phase[1], soft)
    rgb = base + (other - base) * mix[..., None].astype(np.float32)
    shade = 1 + fill.light[0] * u + fill.light[1] * v
    return np.clip(rgb * shade[..., None], 0, 255).astype(np.float32)


def _texture(texture: str, u: np.ndarray, v: np.ndarray, soft: float) -> np.ndarray:
    """Share of the second colour in [0, 1] at texture coordinates in periods."""
    wave_u = np.sin(2 * np.pi * u)
    if texture == "striped":
        return np.clip(0.5 + wave_u / (2 * np.pi * soft), 0, 1)
    if texture == "checkered":
        return np.clip(0.5 + wave_u * np.sin(2 * np.pi * v) / (2 * np.pi * soft), 0, 1)
    if texture == "dotted":
        distance = np.hypot(u * 1.3 - np.round(u * 1.3), v * 1.3 - np.round(v * 1.3))
        return np.clip(0.5 + (0.3 - distance) / soft, 0, 1)
    return np.zeros_like(u)
