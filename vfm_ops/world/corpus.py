"""Writes a world as a corpus: media that a pipeline ingests like any other, and the truth about it in the usual formats.

    OUT/images/image000000.jpg + .txt   stills and their captions
    OUT/videos/video000000.mp4 + .txt   clips and the captions of their shots, one a line
    OUT/annotations/images.json         COCO: boxes xywh, RLE masks; categories are full phrases
    OUT/annotations/videos.json         YouTube-VIS: per track one box and RLE per frame, null where unseen; shots per video
    OUT/annotations/mot/video000000/    MOTChallenge: gt/gt.txt (1-based frame, id, xywh, 1, class, visibility), seqinfo.ini
    OUT/world.json                      the settings that made it

Items are written one by one: memory does not grow with their number, save for the annotations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video
from vfm_ops.world.captions import caption
from vfm_ops.world.clips import Clip, clip
from vfm_ops.world.scene import Scene, World, image
from vfm_ops.world.vocabulary import Kind

_JPEG_QUALITY = 92


class Categories:
    """Category ids (from 1) of phrases, in order of first appearance."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def id_of(self, kind: Kind) -> int:
        """The id of a kind's phrase."""
        return self.ids.setdefault(kind.phrase(), len(self.ids) + 1)

    def rows(self) -> list[dict[str, Any]]:
        """COCO's `categories`."""
        return [{"id": i, "name": name} for name, i in self.ids.items()]


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE, JSON-ready, of a bool (H, W)."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode()}


def xywh(box_4: np.ndarray) -> list[float]:
    """COCO's box of a corner box."""
    x0, y0, x1, y1 = (float(v) for v in box_4)
    return [x0, y0, x1 - x0, y1 - y0]


def write_images(world: World, count: int, out: Path, progress: Callable[[int], None] = lambda n: None) -> Path:
    """Stills 0 ... count - 1 with sidecar captions. Returns the path of the COCO file."""
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = Categories()
    for i in range(count):
        scene = image(world, i)
        name = f"image{i:06d}.jpg"
        cv2.imwrite(str(folder / name), scene.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        text = caption(scene)
        (folder / name).with_suffix(".txt").write_text(text + "\n")
        images.append({"id": i + 1, "file_name": name, "height": world.height, "width": world.width, "caption": text})
        for k, thing in enumerate(scene.things):
            if scene.mask(k).any():
                annotations.append(_annotation(scene, k, len(annotations) + 1, i + 1, categories.id_of(thing.kind)))
        progress(i + 1)
    return _write_json(
        out / "annotations" / "images.json",
        {"info": asdict(world), "images": images, "annotations": annotations, "categories": categories.rows()},
    )


def _annotation(scene: Scene, k: int, annotation_id: int, image_id: int, category: int) -> dict[str, Any]:
    mask = scene.mask(k)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category,
        "bbox": xywh(scene.boxes_N4[k]),
        "area": float(mask.sum()),
        "segmentation": rle(mask),
        "iscrowd": 0,
        "attributes": asdict(scene.things[k].kind) | {"size": scene.size_words()[k]},
    }


def write_videos(
    world: World, count: int, out: Path, frames: int = 60, shots: int = 1, fps: int = 15,
    progress: Callable[[int], None] = lambda n: None,
) -> Path:  # fmt: skip
    """Clips 0 ... count - 1 as H.264 mp4 with sidecar captions and MOT folders. Returns the path of the YouTube-VIS file."""
    if world.height % 2 or world.width % 2:
        raise UsageError(f"videos need even sides, not {world.width}x{world.height}; choose another `size`")
    folder = out / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = Categories()
    for i in range(count):
        name = f"video{i:06d}"
        made = clip(world, i, frames, shots)
        tracks = _Tracks(made, categories)
        seen = (tracks.seen(t, scene).rgb for t, scene in enumerate(made))
        write_video(folder / f"{name}.mp4", seen, fps, crf=20, gop=24)
        texts = [caption(made.frame(s.start)) for s in made.shots]
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n")
        bounds = [[s.start, s.stop] for s in made.shots]
        videos.append(
            {"id": i + 1, "file_names": [f"{name}.mp4"], "length": frames, "height": world.height, "width": world.width,
             "fps": fps, "shots": bounds, "captions": texts}
        )  # fmt: skip
        annotations += [
            {"id": len(annotations) + 1 + k, "video_id": i + 1, **row} for k, row in enumerate(tracks.rows())
        ]
        _write_mot(out / "annotations" / "mot" / name, tracks, made, fps)
        progress(i + 1)
    return _write_json(
        out / "annotations" / "videos.json",
        {"info": asdict(world), "videos": videos, "annotations": annotations, "categories": categories.rows()},
    )


class _Tracks:
    """Collects boxes, masks and visibility of a clip's tracks while its frames pass by."""

    def __init__(self, made: Clip, categories: Categories) -> None:
        self.made = made
        things = [thing for shot in made.shots for thing in shot.things]
        self.categories = [categories.id_of(thing.kind) for thing in things]
        self.boxes: list[list[list[float] | None]] = [[None] * made.frames for _ in things]
        self.masks: list[list[dict[str, Any] | None]] = [[None] * made.frames for _ in things]
        self.areas: list[list[float | None]] = [[None] * made.frames for _ in things]

    def seen(self, t: int, scene: Scene) -> Scene:
        """Records frame t and hands it on."""
        first = self.made.shot_of(t).first_track - 1
        for k in range(len(scene.things)):
            mask = scene.mask(k)
            if mask.any():
                self.boxes[first + k][t] = xywh(scene.boxes_N4[k])
                self.masks[first + k][t] = rle(mask)
                self.areas[first + k][t] = float(mask.sum())
        return scene

    def rows(self) -> list[dict[str, Any]]:
        """YouTube-VIS annotations, of tracks that are seen at least once."""
        columns = zip(self.categories, self.boxes, self.masks, self.areas, strict=True)
        return [
            {"category_id": c, "bboxes": b, "segmentations": m, "areas": a, "iscrowd": 0, "track_id": k + 1}
            for k, (c, b, m, a) in enumerate(columns)
            if any(v is not None for v in b)
        ]


def _write_mot(folder: Path, tracks: _Tracks, made: Clip, fps: int) -> None:
    (folder / "gt").mkdir(parents=True, exist_ok=True)
    lines = []
    for k, (category, boxes, areas) in enumerate(zip(tracks.categories, tracks.boxes, tracks.areas, strict=True)):
        # The share of the largest area that the track ever shows stands for MOT's visibility.
        largest = max((a for a in areas if a), default=1.0)
        for t, box in enumerate(boxes):
            if box is not None:
                x, y, w, h = box
                visibility = (areas[t] or 0.0) / largest
                lines.append(
                    (t + 1, f"{t + 1},{k + 1},{x + 1:.1f},{y + 1:.1f},{w:.1f},{h:.1f},1,{category},{visibility:.3f}")
                )
    (folder / "gt" / "gt.txt").write_text("".join(line + "\n" for _, line in sorted(lines, key=lambda pair: pair[0])))
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate={fps}\nseqLength={made.frames}\n"
        f"imWidth={made.world.width}\nimHeight={made.world.height}\nimExt=.jpg\n"
    )


def write_corpus(
    world: World, out: Path, images: int, videos: int, frames: int = 60, shots: int = 1, fps: int = 15,
    progress: Callable[[str, int], None] = lambda what, n: None,
) -> None:  # fmt: skip
    """Stills, clips, truth and settings under `out`, which must be empty or absent.."""
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose a new `out` or remove it")
    out.mkdir(parents=True, exist_ok=True)
    settings = asdict(world) | {"images": images, "videos": videos, "frames": frames, "shots": shots, "fps": fps}
    (out / "world.json").write_text(json.dumps(settings, indent=1) + "\n")
    if images:
        write_images(world, images, out, lambda n: progress("images", n))
    if videos:
        write_videos(world, videos, out, frames, shots, fps, lambda n: progress("videos", n))


def _write_json(path: Path, value: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path
