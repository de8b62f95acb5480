"""Where a box will be: Kalman filters of constant velocity (Kalman 1960), in the two parametrisations that trackers use.

`CORNERS` follows x1, y1, x2, y2, each with a velocity, and ByteTrack's noise. `CENTRE_AREA_RATIO` follows the centre,
the area and the aspect ratio, which has no velocity (SORT, Bewley et al. 2016), and OC-SORT's noise. Time is in frames.
Numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vfm_ops.errors import UsageError

_EPS = 1e-6  # keeps the ratio of a box without height finite
_AREA, _AREA_VELOCITY = 2, 6


@dataclass(frozen=True)
class BoxFilter:
    """measure, box: xyxy (4,) to a measurement (4,) and back. velocities: how many of its components have one; the state is the
    measurement, then those. process, measurement, start: diagonals of the covariances of a step, of a detection, and of the
    state after the first detection.
    """

    measure: Callable[[np.ndarray], np.ndarray]
    box: Callable[[np.ndarray], np.ndarray]
    velocities: int
    process: tuple[float, ...]
    measurement: tuple[float, ...]
    start: tuple[float, ...]

    def begin(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State (D,) and covariance (D, D) after the first detection: at rest."""
        return np.concatenate([self.measure(box), np.zeros(self.velocities)]), np.diag(self.start)

    def predict(self, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One frame on."""
        transition = np.eye(len(mean)) + np.eye(len(mean), k=4)
        if self is CENTRE_AREA_RATIO and mean[_AREA] + mean[_AREA_VELOCITY] <= 0:
            mean = mean.copy()
            mean[_AREA_VELOCITY] = 0.0  # a box that shrinks to nothing keeps its area instead
        return transition @ mean, transition @ covariance @ transition.T + np.diag(self.process)

    def correct(self, mean: np.ndarray, covariance: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A detection of this frame. The covariance is Joseph's form, which stays symmetric and positive."""
        noise, rest = np.diag(self.measurement), np.eye(len(mean))
        gain = np.linalg.solve(covariance[:4, :4] + noise, covariance[:4]).T
        rest[:, :4] -= gain
        mean = mean + gain @ (self.measure(box) - mean[:4])
        return mean, rest @ covariance @ rest.T + gain @ noise @ gain.T


def checked_box(box: np.ndarray) -> np.ndarray:
    """float64 (4,) of a finite xyxy box; UsageError for anything else."""
    box = np.asarray(box, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise UsageError(f"a detection's box is {box.tolist()}: give finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    return box


def centre_area_ratio(box: np.ndarray) -> np.ndarray:
    """xyxy -> centre x, centre y, area, width / height."""
    width, height = box[2:] - box[:2]
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, width * height, width / (height + _EPS)])


def box_of_area(state: np.ndarray) -> np.ndarray:
    """The inverse of `centre_area_ratio`; a box without area is a point."""
    x, y, area, ratio = state[:4]
    width = np.sqrt(max(0.0, area * ratio))
    height = area / width if width > 0 else 0.0
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _corners(state: np.ndarray) -> np.ndarray:
    return np.asarray(state[:4], np.float64)


CORNERS = BoxFilter(_corners, _corners, 4, (0.01,) * 8, (0.1,) * 4, (1.0,) * 8)
CENTRE_AREA_RATIO = BoxFilter(
    centre_area_ratio,
    box_of_area,
    3,
    (1.0, 1.0, 1.0, 1.0, 0.01, 0.01, 0.0001),
    (1.0, 1.0, 10.0, 10.0),
    (10.0, 10.0, 10.0, 10.0, 1e4, 1e4, 1e4),
)
