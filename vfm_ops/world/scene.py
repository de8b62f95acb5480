"""A still of the world: things placed on a background, with what is where and how it is said.

Item i of a world is a function of (seed, i) alone, so workers can make any item in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.world.backgrounds import background, photograph_crop, procedural
from vfm_ops.world.shapes import Fill, Pose, blob_outline, coverage, outline, paint
from vfm_ops.world.vocabulary import CUTOUT, Kind, held_out_kinds, size_word, training_kinds

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class World:
    """Settings of a world.

    seed: all items follow from it. split: `train` or `heldout` (other kinds, other backgrounds).
    height, width: pixels. objects: fewest and most things of an item. radius: smallest and largest, over the shorter side.
    cutouts: share of nameless photographic blobs. overlap: largest share of a placed thing that later ones may hide.
    degrade: noise, blur and JPEG artefacts. photographic: share of photographs among the backgrounds.
    """

    seed: int = 0
    split: str = "train"
    height: int = 128
    width: int = 128
    objects: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.08, 0.34)
    cutouts: float = 0.0
    overlap: float = 0.25
    degrade: bool = True
    photographic: float = 0.6

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"there is no split {self.split!r} of the world; choose one of {', '.join(SPLITS)}")
        if not 1 <= self.objects[0] <= self.objects[1] <= 250:
            raise UsageError(f"objects is {self.objects}: give two counts from 1 to 250, the smaller first")

    def rng(self, i: int, stream: int = 0) -> np.random.Generator:
        """The random source of item i (stream 0: stills, 1: clips); the splits never share one."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), stream, i))

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that this world draws from."""
        return training_kinds() if self.split == "train" else held_out_kinds()


@dataclass(frozen=True)
class Thing:
    """One object: what it is, how it is painted, where it is. z follows from its place in the scene's list."""

    kind: Kind
    fill: Fill
    pose: Pose
    contours: tuple[np.ndarray, ...]
    pixels: np.ndarray | None = None  # a cutout's photograph

    def paint(self, top: int, left: int, h: int, w: int) -> np.ndarray:
        """Pixels float32 (h, w, 3) for the box at (top, left)."""
        if self.pixels is None:
            return paint(self.kind, self.fill, self.pose, top, left, h, w)
        ys, xs = np.mgrid[top : top + h, left : left + w] + 0.5
        uv = self.pose.unplace(np.stack([xs.ravel(), ys.ravel()], 1)).reshape(h, w, 2)
        side = len(self.pixels)
        u, v = ((np.clip(uv / 1.1, -1, 1) + 1) * (side - 1) / 2).astype(np.float32).transpose(2, 0, 1)
        return cv2.remap(self.pixels, u, v, cv2.INTER_LINEAR).astype(np.float32)


@dataclass
class Scene:
    """A rendered still with its ground truth.

    rgb: uint8 (H, W, 3). ids: uint8 (H, W), 0 for background, k + 1 where things[k] is seen.
    boxes_N4: float32 xyxy of the visible pixels (zeros when hidden). things: back to front.
    """

    rgb: np.ndarray
    ids: np.ndarray
    things: list[Thing]
    boxes_N4: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))

    def mask(self, k: int) -> np.ndarray:
        """Visible pixels of things[k], bool (H, W)."""
        return self.ids == k + 1

    def size_words(self) -> list[str]:
        """`small`, `large` or nothing for each thing."""
        side = min(self.rgb.shape[:2])
        return [size_word(t.pose.radius / side) for t in self.things]


def random_thing(rng: np.random.Generator, world: World, pose: Pose) -> Thing:
    """A thing of a random kind of this world, randomly painted, at this pose."""
    if rng.random() < world.cutouts:
        pixels = photograph_crop(rng, world.split, 64, 64)
        pixels = procedural(rng, world.split, 64, 64) if pixels is None else pixels
        return Thing(CUTOUT, Fill(), pose, blob_outline(rng), pixels)
    kind = world.kinds()[rng.integers(len(world.kinds()))]
    light = rng.uniform(0, 0.18), rng.uniform(0, 2 * np.pi)
    fill = Fill(
        tint=tuple(rng.uniform(-16, 16, 3)),
        period=rng.uniform(0.5, 0.75),
        phase=tuple(rng.uniform(0, 1, 2)),
        contrast=rng.uniform(0.55, 0.75),
        light=(light[0] * np.cos(light[1]), light[0] * np.sin(light[1])),
        edge=rng.uniform(0.3, 0.8) if rng.random() < 0.6 else 0.0,
    )
    return Thing(kind, fill, pose, outline(kind.shape))


def composite(ground: np.ndarray, things: list[Thing]) -> Scene:
    """Paints things back to front over a copy of ground, uint8 (H, W, 3), and records who is seen where."""
    height, width = ground.shape[:2]
    rgb, ids = ground.copy(), np.zeros((height, width), np.uint8)
    for k, thing in enumerate(things):
        alpha, (top, left) = coverage(thing.contours, thing.pose, height, width)
        if not alpha.size:
            continue
        h, w = alpha.shape
        a = alpha.astype(np.float32)[..., None] / 255
        colour = thing.paint(top, left, h, w)
        if thing.fill.edge:
            inner = cv2.erode(alpha, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
            colour *= 1 - thing.fill.edge * (1 - inner.astype(np.float32)[..., None] / 255)
        box = rgb[top : top + h, left : left + w]
        box[:] = (box + (colour - box) * a + 0.5).astype(np.uint8)
        ids[top : top + h, left : left + w][alpha > 127] = k + 1
    return Scene(rgb, ids, things, visible_boxes(ids, len(things)))


def visible_boxes(ids: np.ndarray, n: int) -> np.ndarray:
    """xyxy float32 (n, 4) around each id's pixels (exclusive right and bottom); zeros for an id that is not seen."""
    boxes = np.zeros((n, 4), np.float32)
    for k in range(n):
        seen = ids == k + 1
        xs, ys = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
        if len(xs):
            boxes[k] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def degrade(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Sensor noise, slight blur and JPEG artefacts, each by chance. uint8 (H, W, 3) in and out."""
    if rng.random() < 0.3:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 0.8))
    if rng.random() < 0.5:
        noise = rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(rng.uniform(2, 9))
        rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(45, 95))
        _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        rgb = np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])
    return rgb


def place(rng: np.random.Generator, world: World, n: int) -> list[Pose]:
    """n poses inside the frame whose discs overlap by at most `world.overlap` of the radius-sum, where there is room."""
    side = min(world.height, world.width)
    poses: list[Pose] = []
    for _ in range(n):
        for attempt in range(40):
            # Shrinks as it fails, so that a crowded frame still gets its things.
            r = side * np.exp(rng.uniform(*np.log(world.radius)))
            r = max(side * world.radius[0], r * 0.96**attempt)
            cx, cy = rng.uniform(0.9 * r, world.width - 0.9 * r), rng.uniform(0.9 * r, world.height - 0.9 * r)
            room = all(np.hypot(cx - p.cx, cy - p.cy) > (r + p.radius) * (1 - world.overlap) for p in poses)
            if room:
                break
        angle, aspect = rng.uniform(-0.4, 0.4), np.exp(rng.uniform(-0.15, 0.15))
        poses.append(Pose(cx, cy, r, angle, aspect))
    return poses


def image(world: World, i: int) -> Scene:
    """Still i of a world: between `objects` things on one background."""
    rng = world.rng(i)
    n = int(rng.integers(world.objects[0], world.objects[1] + 1))
    ground = background(rng, world.split, world.height, world.width, world.photographic)
    scene = composite(ground, [random_thing(rng, world, pose) for pose in place(rng, world, n)])
    if world.degrade:
        scene.rgb = degrade(rng, scene.rgb)
    return scene
