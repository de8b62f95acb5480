"""Near-duplicates planted in real images: what `vfm bench curate` finds again, and how often it is wrong.

The images are tiles of photographs that installed packages and Debian's opencv-doc ship, filled up with Fashion-MNIST,
whose garments resemble each other closely and so test precision.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.packages import package_folder

TILE = 160
_OPENCV_DOC = Path("/usr/share/doc/opencv-doc/examples/data")
_FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
# Stereo and burst pictures, and a page that lies turned, show one scene twice: near-duplicates that nobody planted.
_TWINS = (
    "left0",
    "left1",
    "right",
    "aloeR",
    "graf3",
    "leuvenB",
    "rubberwhale2",
    "basketball2",
    "aero3",
    "ela_modified",
)
_MORE_TWINS = (
    "motorcycle_right",
    "cheetah1",
    "box.png",
    "templ",
    "tmpl",
    "text_",
    "chessboard",
    "Suzanne2",
    "GT",
    "pca_test",
    "imageTextR",
)


def photographs() -> list[Path]:
    """Photographs at hand, sorted by name; empty where none of the packages is installed."""
    folders = [_OPENCV_DOC]
    for package, inner in (("skimage", "data"), ("perception", "testing/images"), ("gradio", "media_assets/images")):
        if folder := package_folder(package):
            folders.append(folder / inner)
    files = [f for folder in folders if folder.is_dir() for f in sorted(folder.iterdir())]
    kinds = (".jpg", ".jpeg", ".png")
    return [f for f in files if f.suffix.lower() in kinds and not any(twin in f.name for twin in _TWINS + _MORE_TWINS)]


def real_images(count: int, seed: int = 0) -> list[np.ndarray]:
    """`count` different real images, uint8 RGB (160, 160, 3): tiles that don't overlap, then Fashion-MNIST.

    Tiles with little texture are left out: they are all alike. Raises UsageError when there are not enough.
    """
    tiles = [tile for path in photographs() for tile in _tiles(path)][:count]
    missing = count - len(tiles)
    if missing > 0:
        if not _FASHION.exists():
            raise UsageError(
                f"{count} images need Debian's dataset-fashion-mnist: apt-get install dataset-fashion-mnist"
            )
        raw = np.frombuffer(gzip.decompress(_FASHION.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        for index in np.random.default_rng(seed).choice(len(raw), missing, replace=False):
            grown = cv2.resize(raw[index], (TILE, TILE), interpolation=cv2.INTER_CUBIC)
            tiles.append(cv2.cvtColor(grown, cv2.COLOR_GRAY2RGB))
    return tiles


def _tiles(path: Path) -> Iterator[np.ndarray]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        return
    scale = min(1.0, 1280 / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    for y in range(0, image.shape[0] - TILE + 1, TILE):
        for x in range(0, image.shape[1] - TILE + 1, TILE):
            tile = image[y : y + TILE, x : x + TILE]
            gray = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
            blocks = gray.reshape(8, TILE // 8, 8, TILE // 8).std(axis=(1, 3))
            if np.median(blocks) > 10:
                yield np.ascontiguousarray(tile)


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """80 % of each side, anywhere."""
    h, w = image.shape[0] * 4 // 5, image.shape[1] * 4 // 5
    y, x = int(rng.integers(image.shape[0] - h + 1)), int(rng.integers(image.shape[1] - w + 1))
    return image[y : y + h, x : x + w]


def resize(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to between 40 and 70 % of its size."""
    scale = float(rng.uniform(0.4, 0.7))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def jpeg30(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG at quality 30."""
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darker or brighter by 25 %."""
    return np.clip(image.astype(np.float32) * rng.choice([0.75, 1.25]), 0, 255).astype(np.uint8)


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 3 to 7 degrees either way, borders reflected."""
    h, w = image.shape[:2]
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), float(rng.uniform(3, 7) * rng.choice([-1, 1])), 1.0)
    return cv2.warpAffine(image, turn, (w, h), borderMode=cv2.BORDER_REFLECT)


def text_overlay(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A line of white text with a black rim, somewhere."""
    out, place = image.copy(), (4, int(rng.integers(30, image.shape[0] - 10)))
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.putText(out, "BREAKING NEWS", place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, width, cv2.LINE_AA)
    return out


def exact(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same pixels."""
    return image.copy()


TRANSFORMS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    f.__name__: f for f in (exact, crop, resize, jpeg30, brightness, flip, rotate, text_overlay)
}
