"""A video of the world: shots, each with its own ground and things that move, scale, turn, hide one another, leave and return.

Every pose is a closed form of time, so any frame can be rendered on its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vfm_ops.world.backgrounds import background
from vfm_ops.world.scene import Scene, Thing, World, composite, place, random_thing
from vfm_ops.world.shapes import Pose

_STREAM = 1
PATHS = ("sway", "cross", "leave", "rest")


@dataclass(frozen=True)
class Motion:
    """How a pose changes over t in [0, 1], the length of the shot.

    sway: amplitude in pixels (x, y), cycles and phase of a sine. cross: pixels travelled (x, y) over the shot, through the pose
    at half time. breathe: relative amplitude and cycles of the radius. turn: radians over the shot.
    """

    sway: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    cross: tuple[float, float] = (0.0, 0.0)
    breathe: tuple[float, float] = (0.0, 1.0)
    turn: float = 0.0

    def at(self, pose: Pose, t: float) -> Pose:
        """The pose at time t."""
        wave = np.sin(2 * np.pi * (self.sway[2] * t + self.sway[3]))
        return replace(
            pose,
            cx=pose.cx + self.sway[0] * wave + self.cross[0] * (t - 0.5),
            cy=pose.cy + self.sway[1] * wave + self.cross[1] * (t - 0.5),
            radius=pose.radius * (1 + self.breathe[0] * np.sin(2 * np.pi * self.breathe[1] * t)),
            angle=pose.angle + self.turn * t,
        )


@dataclass(frozen=True)
class Shot:
    """frames start <= index < stop of a clip: a ground larger than the frame (panned over), things and their motions."""

    start: int
    stop: int
    ground: np.ndarray
    pan: tuple[float, float]
    things: list[Thing]
    motions: list[Motion]
    first_track: int


@dataclass(frozen=True)
class Clip:
    """A rendered-on-demand video. Track ids are 1 ... tracks over the whole clip; each belongs to one shot."""

    world: World
    index: int
    frames: int
    shots: list[Shot]

    @property
    def tracks(self) -> int:
        """Number of tracks."""
        return sum(len(s.things) for s in self.shots)

    def shot_of(self, t: int) -> Shot:
        """The shot that frame t belongs to."""
        return next(s for s in self.shots if s.start <= t < s.stop)

    def frame(self, t: int) -> Scene:
        """Frame t; its things[k] is track shot_of(t).first_track + k."""
        shot = self.shot_of(t)
        time = (t - shot.start) / max(1, shot.stop - shot.start - 1)
        h, w = self.world.height, self.world.width
        dy, dx = (int(v) for v in np.asarray(shot.pan)[::-1] * time)
        y0, x0 = (shot.ground.shape[0] - h) // 2 + dy, (shot.ground.shape[1] - w) // 2 + dx
        ground = shot.ground[max(y0, 0) : max(y0, 0) + h, max(x0, 0) : max(x0, 0) + w]
        moved = [
            replace(thing, pose=m.at(thing.pose, time)) for thing, m in zip(shot.things, shot.motions, strict=True)
        ]
        scene = composite(np.ascontiguousarray(ground), moved)
        if self.world.degrade:
            scene.rgb = _film_grain(self.world, self.index, t, scene.rgb)
        return scene

    def __iter__(self) -> Iterator[Scene]:
        return (self.frame(t) for t in range(self.frames))


def _film_grain(world: World, index: int, t: int, rgb: np.ndarray) -> np.ndarray:
    """Mild noise and blur of one strength for a whole clip."""
    strength = world.rng(index, _STREAM + 1).uniform(0, 6)
    rng = np.random.default_rng((world.seed, index, t))
    noise = rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(strength)
    rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(rgb, (0, 0), 0.5) if index % 3 == 0 else rgb


def random_motion(rng: np.random.Generator, path: str, pose: Pose, height: int, width: int) -> Motion:
    """A motion of one of PATHS: `leave` swings out of the frame and back, `cross` goes through it from end to end."""
    side = min(height, width)
    breathe = (rng.uniform(0, 0.25), rng.uniform(0.5, 1.5))
    turn = float(rng.normal(0, 1.2))
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if path == "leave":
        # Half a cycle out and back; far enough that the whole thing is gone for a while.
        sideways = rng.random() < 0.5
        outward = np.array([np.sign(pose.cx - width / 2), 0.0] if sideways else [0.0, np.sign(pose.cy - height / 2)])
        outward = outward if outward.any() else np.array([1.0, 0.0])
        reach = side * rng.uniform(0.6, 0.8)
        return Motion((*(outward * reach), 0.5 * rng.integers(1, 3), 0.0), breathe=breathe, turn=turn)
    if path == "cross":
        towards = np.array([width / 2 - pose.cx, height / 2 - pose.cy])
        direction = towards / (np.linalg.norm(towards) + 1e-6) if rng.random() < 0.5 else direction
        return Motion(cross=tuple(direction * side * rng.uniform(0.5, 1.0)), breathe=breathe, turn=turn)
    if path == "sway":
        reach = side * rng.uniform(0.1, 0.35)
        return Motion((*(direction * reach), rng.uniform(0.5, 1.5), rng.uniform(0, 1)), breathe=breathe, turn=turn)
    return Motion(breathe=(breathe[0] / 2, breathe[1]), turn=turn / 3)


def clip(world: World, i: int, frames: int = 60, shots: int = 1, paths: tuple[str, ...] = PATHS) -> Clip:
    """Clip i of a world, of `frames` frames in `shots` shots of about equal length; things hide one another as they cross."""
    rng = world.rng(i, _STREAM)
    cuts = [0, *(round(frames * (k + rng.uniform(-0.2, 0.2)) / shots) for k in range(1, shots)), frames]
    made, first = [], 1
    for start, stop in itertools.pairwise(cuts):
        margin = int(0.12 * min(world.height, world.width))
        ground = background(rng, world.split, world.height + 2 * margin, world.width + 2 * margin, world.photographic)
        pan = tuple(rng.uniform(-margin, margin, 2)) if rng.random() < 0.5 else (0.0, 0.0)
        n = int(rng.integers(world.objects[0], world.objects[1] + 1))
        things = [random_thing(rng, world, pose) for pose in place(rng, world, n)]
        motions = [random_motion(rng, str(rng.choice(paths)), t.pose, world.height, world.width) for t in things]
        made.append(Shot(start, stop, ground, pan, things, motions, first))
        first += n
    return Clip(world, i, frames, made)
