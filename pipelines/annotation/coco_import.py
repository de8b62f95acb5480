"""COCO instances into a lake's annotations: boxes, polygons and run lengths, of pictures that are matched by file name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from pipelines.lake import Lake
from pipelines.lake.annotation_rows import FrameSizes
from pipelines.reporting.evaluate import frames_of_images, scale_between
from vfm_ops.errors import UsageError
from vfm_ops.track.masks import Rle, check_rle, decode_rle, encode_rle, rle_text

AT_ONCE = 20_000  # rows in one commit
Row = dict[str, Any]


def import_coco(lake: Lake, file: Path, author: str) -> dict[str, int]:
    """Reads a COCO file of instances into `annotations`.

    The same file again makes new versions of the same annotations: each is known by the file's name and its id there.

    Args:
        lake: an open lake.
        file: JSON with images, annotations and categories. An image is the still of that file name (with as many folders as
            it takes), or frame 12 of `clip/000012.jpg`, or what its `frame_id` names.
        author: who is said to have said so.

    Returns:
        Counts: annotations, images (that the lake has), and, where there are any, unknown_images, crowds and empty ones,
        which are left out.

    Raises:
        UsageError: no COCO file, none of its images is in the lake, or one is another picture than the lake's.
    """
    data = _read(file)
    names = {c["id"]: str(c["name"]) for c in data["categories"]}
    frames = frames_of_images(lake, data["images"], strict=False)
    if not frames:
        raise UsageError(f"{file} names no image of the lake, such as {data['images'][0]['file_name']!r}")
    sizes = FrameSizes(lake, [{"frame_id": f, "asset_id": f.rpartition(":")[0]} for f in frames.values()])
    images = {i["id"]: i for i in data["images"]}
    tally: Counter[str] = Counter(annotations=0, images=len(frames))
    tally["unknown_images"] = len(images) - len(frames)

    def rows() -> Iterator[Row]:
        for said in data["annotations"]:
            frame_id = frames.get(said["image_id"])
            if frame_id is None:
                continue
            stored = sizes.find({"frame_id": frame_id, "asset_id": frame_id.rpartition(":")[0]})
            shape = None if said.get("iscrowd") else _shape(said, images[said["image_id"]], stored)
            if shape is None:
                tally["crowds" if said.get("iscrowd") else "empty"] += 1
                continue
            tally["annotations"] += 1
            object_id, label = f"{file.name}:{said['id']}", names[said["category_id"]]
            whose = {"frame_id": frame_id, "object_id": object_id, "label": label}
            yield whose | shape | {"score": said.get("score")}

    try:
        every = rows()
        while part := list(islice(every, AT_ONCE)):
            lake.add_annotations(part, author=author, source=f"import coco {file.name}")
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{file} is no complete COCO file: {type(e).__name__} {e}") from e
    return {what: count for what, count in tally.items() if count or what in ("annotations", "images")}


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {file}: {e}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list) or not data[key]:
            raise UsageError(f"{file} is no COCO file of instances: it has no list of {key}")
    return data


def _shape(said: Row, image: Row, stored: tuple[int, int] | None) -> Row | None:
    """Box and mask in pixels of the stored frame of (height, width); None for what has no pixel."""
    x_scale, y_scale = scale_between(image, None if stored is None else stored[::-1])
    size = (image.get("height"), image.get("width"))
    height, width = stored or (int(size[0] or 0), int(size[1] or 0))
    row: Row = {}
    if said.get("segmentation"):
        mask = _mask(said["segmentation"], (height, width), (1 / x_scale, 1 / y_scale))
        if mask is None:
            return None
        row = {"mask": mask, "kind": "mask"}
    if said.get("bbox"):
        x, y, w, h = (float(v) for v in said["bbox"])
        corners = np.array([x / x_scale, y / y_scale, (x + w) / x_scale, (y + h) / y_scale])
        box = np.clip(corners, 0, [width, height] * 2) if height and width else corners
        if (box[2:] > box[:2]).all():
            row |= {"box": box.tolist()}
    return row | {"kind": row.get("kind", "box")} if row else None


def _mask(segmentation: Any, size: tuple[int, int], scale: tuple[float, float]) -> Rle | None:
    """RLE of that (height, width) from polygons (scaled), or run lengths of any size; None for one without a pixel."""
    if isinstance(segmentation, list):
        polygons = [(np.reshape(p, (-1, 2)) * scale).ravel().tolist() for p in segmentation if len(p) >= 6]
        found = coco.merge(coco.frPyObjects(polygons, *size)) if polygons else None
    elif isinstance(segmentation["counts"], list):
        found = coco.frPyObjects(segmentation, *segmentation["size"])
    else:
        found = segmentation
    if found is None:
        return None
    rle = Rle(size=[int(n) for n in found["size"]], counts=rle_text(found["counts"]))
    if len(check_rle(rle)) < 2:
        return None
    if tuple(rle["size"]) == size or not all(size):
        return rle
    small = cv2.resize(decode_rle(rle).astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return encode_rle(small) if small.any() else None
