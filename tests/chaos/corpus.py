"""A corpus of a few kilobytes, drawn: pictures, clips with a cut, a clip that ends early, a file that is no picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import cv2
import numpy as np

WIDTH, HEIGHT, FPS = 96, 72, 8
COLOURS = {"red": (220, 30, 35), "blue": (30, 70, 215), "green": (40, 160, 60), "yellow": (245, 225, 40)}
RED, BLUE = ("square", "red", 20, 36, 12), ("circle", "blue", 70, 30, 13)


def draw_corpus(folder: Path) -> Path:
    """Writes `first` (six pictures, two of them the same, three clips, one text) and `second` (three pictures, a clip)."""
    first, second = folder / "first", folder / "second"
    for part in (first, second):
        part.mkdir(parents=True)
    _picture(first / "picture0.jpg", 1, (120, 120, 120), ("square", "red", 30, 30, 14))
    _picture(first / "picture1.jpg", 2, (90, 110, 60), ("circle", "blue", 60, 40, 16))
    _picture(
        first / "picture2.jpg", 3, (180, 170, 160), ("circle", "green", 40, 36, 18), ("square", "yellow", 74, 50, 9)
    )
    _picture(first / "picture3.jpg", 4, (60, 60, 90), ("square", "red", 60, 40, 10), ("circle", "blue", 25, 25, 10))
    _picture(first / "picture4.jpg", 5, (30, 40, 30), ("circle", "yellow", 48, 36, 20))
    shutil.copyfile(first / "picture1.jpg", first / "copy1.jpg")
    (first / "text.jpg").write_text("no picture\n")
    _clip(first / "clip0.mp4", [(11, (130, 120, 110), RED, 2.5, 12), (12, (40, 60, 90), BLUE, -2.5, 12)])
    _clip(first / "clip1.mp4", [(13, (170, 180, 160), RED, 1.5, 16)])
    _clip(first / "cut.mkv", [(14, (100, 140, 100), BLUE, -1.0, 32)])
    whole = (first / "cut.mkv").read_bytes()
    (first / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    _picture(second / "picture0.jpg", 6, (200, 190, 150), ("square", "blue", 50, 30, 14))
    _picture(second / "picture1.jpg", 7, (140, 150, 190), ("circle", "red", 30, 40, 16))
    _picture(second / "picture2.jpg", 8, (20, 25, 40), ("square", "green", 60, 40, 18))
    _clip(second / "clip.mp4", [(15, (150, 100, 120), RED, 1.5, 32)])
    return folder


def change_corpus(folder: Path) -> None:
    """Replaces two files of `first` by others: another picture, another clip."""
    _picture(folder / "first" / "picture0.jpg", 21, (80, 120, 160), ("circle", "green", 50, 30, 17))
    _clip(folder / "first" / "clip1.mp4", [(22, (60, 160, 160), BLUE, -1.5, 24)])


def _ground(seed: int, tone: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 12, (9, 12, 3)).astype(np.float32)
    noise = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.array(tone) + noise, 0, 255).astype(np.uint8)


def _put(image: np.ndarray, shape: str, colour: str, x: float, y: int, radius: int) -> np.ndarray:
    x, rgb = int(x), COLOURS[colour]
    if shape == "square":
        return cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), rgb, -1)
    return cv2.circle(image, (x, y), radius, rgb, -1)


def _picture(path: Path, seed: int, tone: tuple[int, int, int], *things: tuple) -> None:
    image = _ground(seed, tone)
    for thing in things:
        _put(image, *thing)
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def _clip(path: Path, shots: list[tuple]) -> None:
    """shots: seed and tone of the ground, what moves, pixels a frame, frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "g": "8", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for seed, tone, (shape, colour, x, y, radius), speed, count in shots:
            for i in range(count):
                image = _put(_ground(seed, tone), shape, colour, x + speed * i, y, radius)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
