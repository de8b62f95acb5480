"""COCO detection files: `write_coco` makes an annotation file that pycocotools loads, `write_coco_results` a results list.

Rows are those of the lake's `frames` and `detections`; both are read once, in one direction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vfm_ops.errors import UsageError
from vfm_ops.evaluate.files import JsonArrays, Row, inner_path, rle_text, safe_name, whole_file, write_json_list, xywh


def write_coco(
    path: Path,
    frames: Iterable[Row],
    detections: Iterable[Row],
    *,
    categories: Sequence[str] | None = None,
    images_dir: Path | None = None,
) -> dict[str, int]:
    """Write one annotation file; returns how many images, annotations and categories it has.

    frames: frame_id, width, height, and where they have them, file_name (else it is made of the frame id), source, and
    jpeg, which goes to `images_dir` under that name, and whose number is returned as pictures. detections: frame_id,
    label, score, box; a mask, where there is one, becomes the segmentation. Category ids are 1, 2, ... in the order of
    `categories`, or of first appearance. Raises UsageError for a detection without its frame, or of a label that
    `categories` lacks; for a file name that is there twice, or leaves the folder.
    """
    category_of = {name: i + 1 for i, name in enumerate(categories or ())}
    with JsonArrays(("images", "annotations")) as arrays:
        image_of, pictures = _write_images(arrays, frames, images_dir)
        for i, row in enumerate(detections):
            category = _category(category_of, str(row["label"]), grows=categories is None)
            where = {"id": i + 1, "image_id": _image(image_of, row), "category_id": category, "iscrowd": 0}
            arrays.add("annotations", where | _shape(row))
        head = {
            "info": {"description": "exported by vfm"},
            "licenses": [],
            "categories": [{"id": i, "name": name} for name, i in category_of.items()],
        }
        arrays.save(path, head)
        written = {} if images_dir is None else {"pictures": pictures}
        return {**arrays.counts, "categories": len(category_of), **written}


def _write_images(arrays: JsonArrays, frames: Iterable[Row], images_dir: Path | None) -> tuple[dict[str, int], int]:
    """Adds every frame to `images`, and its JPEG to the folder; returns image id by frame id, and how many JPEGs."""
    image_of: dict[str, int] = {}
    names: set[str] = set()
    pictures = 0
    for row in frames:
        frame_id = str(row["frame_id"])
        if frame_id in image_of:
            raise UsageError(f"frame {frame_id} is there twice")
        image_of[frame_id] = len(image_of) + 1
        name = inner_path(row.get("file_name") or f"{safe_name(frame_id)}.jpg")
        if name in names:
            raise UsageError(f"two frames would be written to {name}: give each a file_name of its own")
        names.add(name)
        image = {"id": image_of[frame_id], "file_name": name, "frame_id": frame_id}
        size = {"width": int(row["width"]), "height": int(row["height"])}
        arrays.add("images", image | size | ({"source": row["source"]} if row.get("source") else {}))
        if images_dir is not None and row.get("jpeg"):
            with whole_file(images_dir / name, "wb") as file:
                file.write(row["jpeg"])
            pictures += 1
    return image_of, pictures


def _category(category_of: dict[str, int], label: str, *, grows: bool) -> int:
    """The id of a label; where the list grows, a new one gets the next."""
    if label not in category_of:
        if not grows:
            raise UsageError(f"a detection has the label {label!r}; categories are: {', '.join(category_of)}")
        category_of[label] = len(category_of) + 1
    return category_of[label]


def write_coco_results(path: Path, detections: Iterable[Row], ground_truth: Path) -> int:
    """Write detections as a results list for `COCO.loadRes`, with the image and category ids of an annotation file.

    ground_truth: a file that `write_coco` made, or any whose images carry a frame_id. Returns how many were written.
    """
    dataset = json.loads(Path(ground_truth).read_text())
    image_of = {str(image.get("frame_id", image["file_name"])): image["id"] for image in dataset["images"]}
    category_of = {str(c["name"]): c["id"] for c in dataset["categories"]}

    def results() -> Iterator[dict[str, Any]]:
        for row in detections:
            if str(row["label"]) not in category_of:
                raise UsageError(f"{ground_truth} has no category {row['label']!r}: {', '.join(category_of)}")
            where = {"image_id": _image(image_of, row), "category_id": category_of[str(row["label"])]}
            yield where | _shape(row) | {"score": float(row["score"])}

    return write_json_list(path, results())


def _image(image_of: dict[str, int], row: Row) -> int:
    try:
        return image_of[str(row["frame_id"])]
    except KeyError:
        raise UsageError(f"a detection is on frame {row['frame_id']}, which is not among the frames") from None


def _shape(row: Row) -> dict[str, Any]:
    box = xywh(row["box"])
    shape: dict[str, Any] = {"bbox": box, "area": box[2] * box[3]}
    mask = row.get("mask")
    if mask is not None:
        from pycocotools import mask as rle

        shape |= {"segmentation": rle_text(mask), "area": float(rle.area(rle_text(mask)))}
    if row.get("score") is not None:
        shape["score"] = float(row["score"])
    return shape
