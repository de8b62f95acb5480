"""What things stand on: crops of real photographs found in installed packages (never copied), and procedural textures.

Some photographs and one procedural family belong to the held-out split only.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np

from vfm_ops.errors import MediaError
from vfm_ops.packages import package_folder

# package: (sub-folder, file names); `!` marks what only the held-out split shows.
_PHOTOGRAPHS = {
    "skimage": (
        "data",
        "astronaut.png !chelsea.png !coffee.png rocket.jpg brick.png grass.png gravel.png motorcycle_left.png "
        "hubble_deep_field.jpg retina.jpg ihc.png",
    ),
    "perception": (
        "testing/images",
        "image1.jpg image2.jpg !image3.jpg image4.jpg image5.jpg image6.jpg !image7.jpg image8.jpg image9.jpg image10.jpg",
    ),
    "imgaug": ("", "!quokka.jpg"),
    "gradio": ("", "media_assets/images/cheetah.jpg !media_assets/images/tower.jpg media_assets/images/groot.jpeg"),
}
_LONGEST = 512
PROCEDURAL = {"train": ("plain", "gradient", "clouds", "bands"), "heldout": ("clouds", "cells")}


@functools.cache
def photographs(split: str) -> tuple[Path, ...]:
    """Paths of a split's photographs, of those packages that are installed; may be empty."""
    found: list[Path] = []
    for package, (folder, names) in _PHOTOGRAPHS.items():
        installed = package_folder(package)
        if installed is None:
            continue
        root = installed / folder
        wanted = [n.lstrip("!") for n in names.split() if n.startswith("!") == (split == "heldout")]
        found += [root / n for n in wanted if (root / n).is_file()]
    return tuple(found)


@functools.cache
def _load(path: Path) -> np.ndarray:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise MediaError("not_media", f"{path} of an installed package is no readable image; reinstall that package")
    scale = min(1.0, _LONGEST / max(bgr.shape[:2]))
    bgr = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(bgr[..., ::-1])


def photograph_crop(rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray | None:
    """A random crop of a random photograph of the split, uint8 (height, width, 3); None when no package brings one."""
    paths = photographs(split)
    if not paths:
        return None
    rgb = _load(paths[rng.integers(len(paths))])
    h, w = rgb.shape[:2]
    scale = rng.uniform(0.35, 1.0) * min(h / height, w / width)
    ch, cw = max(8, int(height * scale)), max(8, int(width * scale))
    top, left = rng.integers(0, h - ch + 1), rng.integers(0, w - cw + 1)
    crop = rgb[top : top + ch, left : left + cw]
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    shrinking = ch >= height
    return cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def procedural(rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray:
    """A plain, graded, clouded, banded or cellular ground in two or three random colours, uint8 (height, width, 3)."""
    kind = str(rng.choice(PROCEDURAL[split]))
    a, b = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    b = a + (b - a) * rng.uniform(0.2, 1.0)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        t = 0.5 + (xs - 0.5) * np.cos(angle) + (ys - 0.5) * np.sin(angle)
    elif kind == "bands":
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(1, 6)
        t = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * (xs * np.cos(angle) + ys * np.sin(angle)))
    elif kind == "clouds":
        t = sum(_noise(rng, height, width, 3 * 2**k) / 2**k for k in range(3)) / 1.75
    elif kind == "cells":
        seeds = rng.uniform(0, 1, (rng.integers(6, 24), 2)).astype(np.float32)
        t = np.argmin((xs[..., None] - seeds[:, 0]) ** 2 + (ys[..., None] - seeds[:, 1]) ** 2, -1) % 5 / 4
    else:
        t = np.zeros_like(xs)
    return np.clip(a + (b - a) * np.clip(t, 0, 1)[..., None], 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def background(rng: np.random.Generator, split: str, height: int, width: int, photographic: float = 0.6) -> np.ndarray:
    """A ground of the split: a photograph with this probability, else procedural; its contrast is sometimes lowered.

    split: `train` or `heldout`. Returns uint8 RGB (height, width, 3).
    """
    rgb = photograph_crop(rng, split, height, width) if rng.random() < photographic else None
    if rgb is None:
        rgb = procedural(rng, split, height, width)
    level, contrast = rng.uniform(60, 190), rng.uniform(0.5, 1.0)
    return cv2.convertScaleAbs(rgb, alpha=contrast, beta=float(level * (1 - contrast)))
