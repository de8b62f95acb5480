"""Composited ground truth: imgaug's quokka, cut out along its real polygon, moved over real frames of pedestrians."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from jobs.bench.media import VTEST, read_frames
from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video
from vfm_ops.packages import package_folder
from vfm_ops.world.corpus import rle, xywh
from vfm_ops.world.scene import visible_boxes


@dataclass(frozen=True)
class Scene:
    """frames: uint8 (H, W, 3). masks: what is to be seen of the quokka on each, bool (H, W)."""

    frames: list[np.ndarray]
    masks: list[np.ndarray]


def cut_out(height: int) -> tuple[np.ndarray, np.ndarray]:
    """The quokka `height` pixels tall: RGB and its mask."""
    folder = package_folder("imgaug")
    if folder is None:
        raise UsageError("the quokka is missing: pip install --no-deps -r media-requirements.txt")
    image = cv2.cvtColor(cv2.imread(str(folder / "quokka.jpg")), cv2.COLOR_BGR2RGB)
    corners = json.loads((folder / "quokka_annotations.json").read_text())["polygons"][0]["keypoints"]
    polygon = np.array([[p["x"], p["y"]] for p in corners])
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [polygon.round().astype(np.int32)], 1)
    x, y, w, h = cv2.boundingRect(polygon.astype(np.float32))
    size = (round(w * height / h), height)
    rgb = cv2.resize(image[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    return rgb, cv2.resize(mask[y : y + h, x : x + w], size, interpolation=cv2.INTER_NEAREST) > 0


def paste(frame: np.ndarray, rgb: np.ndarray, mask: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The frame with the cut-out at (left, top), clipped at the border, and the pixels that it covers."""
    height, width = frame.shape[:2]
    out, covered = frame.copy(), np.zeros((height, width), bool)
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = min(width, left + rgb.shape[1]), min(height, top + rgb.shape[0])
    if x2 > x1 and y2 > y1:
        part = mask[y1 - top : y2 - top, x1 - left : x2 - left]
        out[y1:y2, x1:x2][part] = rgb[y1 - top : y2 - top, x1 - left : x2 - left][part]
        covered[y1:y2, x1:x2] = part
    return out, covered


def scene(
    frames: list[np.ndarray], lefts: list[int], hidden: range = range(0), top: int = 30, height: int = 40
) -> Scene:
    """The quokka at `lefts[t]` on frame t. On the frames of `hidden` something stands before it: not a pixel shows."""
    rgb, mask = cut_out(height)
    pasted = [paste(f, rgb, mask, x, top) for f, x in zip(frames, lefts)]
    return Scene(
        [frames[t] if t in hidden else image for t, (image, _) in enumerate(pasted)],
        [np.zeros_like(m) if t in hidden else m for t, (_, m) in enumerate(pasted)],
    )


def write_quokka_videos(out: Path, count: int, frames: int = 60, size: tuple[int, int] = (256, 192)) -> Path:
    """Videos (width, height) in which a quokka walks behind something for ten frames and leaves, and their truth.

    OUT/videos/*.mp4 at 10 frames/s. Returns the path of OUT/annotations/videos.json (YouTube-VIS). UsageError without media.
    """
    if not VTEST.exists():
        raise UsageError(f"{VTEST} is missing: apt-get install opencv-doc")
    footage = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in read_frames(VTEST, count * frames)]
    (out / "videos").mkdir(parents=True)
    videos, annotations = [], []
    for i in range(count):
        lefts = [8 + (4 + i % 2) * t for t in range(frames)]
        ground = footage[i * frames : (i + 1) * frames]
        made = scene(ground, lefts, range(20, 30), top=40 + 20 * (i % 4), height=56 + 8 * (i % 3))
        write_video(out / "videos" / f"quokka{i}.mp4", made.frames, 10, crf=20)
        boxes = [visible_boxes(mask.astype(np.uint8), 1)[0] for mask in made.masks]
        seen = [bool(mask.any()) for mask in made.masks]
        videos.append(
            {"id": i + 1, "file_names": [f"quokka{i}.mp4"], "length": frames, "width": size[0], "height": size[1]}
        )
        annotations.append(
            {"id": i + 1, "video_id": i + 1, "category_id": 1, "iscrowd": 0,
             "bboxes": [xywh(b) if s else None for b, s in zip(boxes, seen)],
             "segmentations": [rle(m) if s else None for m, s in zip(made.masks, seen)],
             "areas": [float(m.sum()) if s else None for m, s in zip(made.masks, seen)]}
        )  # fmt: skip
    path = out / "annotations" / "videos.json"
    path.parent.mkdir()
    truth = {"videos": videos, "annotations": annotations, "categories": [{"id": 1, "name": "quokka"}]}
    path.write_text(json.dumps(truth))
    return path
