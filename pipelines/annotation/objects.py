"""What `Segmenter`, `generate_masks` and `VideoSession` give, as rows for `Lake.add_annotations`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from vfm_ops.track.masks import Rle, decode_rle, encode_rle

if TYPE_CHECKING:
    from vfm_ops.segment.automatic import AutoMask
    from vfm_ops.segment.segmenter import Candidates
    from vfm_ops.track.frames import FrameMasks

Row = dict[str, Any]


def rows_of(
    found: Candidates | FrameMasks | Sequence[AutoMask],
    of: str,
    *,
    object_ids: Sequence[str] | Mapping[int, str] | None = None,
    labels: str | Sequence[str | None] | Mapping[int, str] | None = None,
    prompts: Any = None,
) -> list[Row]:
    """Rows of what a model found on one frame; an object that has no pixel there gets none.

    Args:
        found: what `Segmenter.segment` gives (of each object its best candidate), `generate_masks`, or a step of a
            `VideoSession` (its objects are rows of tracks).
        of: the frame's id; for a session the asset's.
        object_ids: names of the objects, in order; for a session by their numbers, which are the names otherwise. What is
            added again under the same names is a new version of the same annotations, what has no name a new one.
        labels: one for all, or in order; for a session by number.
        prompts: what was said of the objects, to be kept as JSON.

    Returns:
        Rows for `Lake.add_annotations`.

    Example:
        >>> found = segmenter.segment(encoded, points=[[[120, 80]]], labels=[[1]])
        >>> lake.add_annotations(rows_of(found, frame_id, labels="cat"), author="ann", source="sam2:pocket")
    """
    tracked = hasattr(found, "frame_index")
    rows = []
    for key, mask, score in _tracked(cast(Any, found)) if tracked else _segmented(cast(Any, found)):
        if mask is not None:
            name, label = _at(object_ids, key), _at(labels, key)
            row = {"mask": mask, "score": score, "label": label, "prompts": prompts}
            if tracked:
                place = {"asset_id": of, "frame_index": cast(Any, found).frame_index, "kind": "track"}
                rows.append(place | {"object_id": str(key) if name is None else name} | row)
            else:
                rows.append({"frame_id": of, "kind": "mask", "object_id": name} | row)
    return rows


@dataclass(frozen=True)
class Asked:
    """What was asked for on a picture.

    entries: of each object, as in a file of prompts; None with everything mode. settings: the rest, which is kept with each
    object. label: of objects whose entry says none. name: of what everything mode finds.
    """

    entries: list[Row] | None
    settings: Row
    label: str | None = None
    name: str | None = None

    def rows(self, frame_id: str, found: Sequence[Row], author: str) -> list[Row]:
        """Rows of the objects that have a pixel. found: mask, box, score, area and number (`object`, from 1) of each."""
        index, rows = int(frame_id.rpartition(":")[2]), []
        for one in (one for one in found if one["area"]):
            number = one["object"]
            entry = {"mask": self.settings, "object": self.name} if self.entries is None else self.entries[number - 1]
            name = entry.get("object") or object_name(author, index, entry)
            row = {"frame_id": frame_id, "kind": "mask", "label": entry.get("label") or self.label}
            row |= {"object_id": f"{name}/{number}" if self.entries is None else name}
            prompts = self.settings if self.entries is None else {"prompts": [entry], **self.settings}
            rows.append(row | {"prompts": prompts} | {k: one[k] for k in ("box", "mask", "score")})
        return rows


def object_name(author: str, frame_index: int, shown: Mapping[str, Any]) -> str:
    """The name of an object that was given none: by its author and by its box, else its first point, else its mask.

    So what is corrected by further points stays the same object. shown: points, box, mask (COCO RLE), as prompts have them.
    """
    box, points = shown.get("box"), shown.get("points")
    first = list(box) if box is not None else list(points[0]) if points else shown.get("mask")
    said = json.dumps([author, frame_index, first], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode(), digest_size=6).hexdigest()


def fitted(row: Row, size: tuple[int, int] | None) -> Row:
    """A row in pixels of the stored frame. row: mask (COCO RLE) and box, of the source. size: (width, height); None changes
    nothing."""
    height, width = row["mask"]["size"]
    if size in (None, (width, height)):
        return row
    small = cv2.resize(decode_rle(row["mask"]).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    scale = [size[0] / width, size[1] / height] * 2  # type: ignore[index]
    return row | {"mask": encode_rle(small > 0), "box": [v * s for v, s in zip(row["box"], scale)]}


def _tracked(found: FrameMasks) -> list[tuple[int, Rle | None, float]]:
    every = zip(found.object_ids, found.masks(), found.scores.tolist(), found.visible.tolist())
    return [(i, encode_rle(mask) if visible and mask.any() else None, float(s)) for i, mask, s, visible in every]


def _segmented(found: Candidates | Sequence[AutoMask]) -> list[tuple[int, Rle | None, float]]:
    if hasattr(found, "best"):
        masks, scores = found.best()
        return [(n, encode_rle(m) if m.any() else None, float(s)) for n, (m, s) in enumerate(zip(masks, scores))]
    return [(n, m.rle, m.score) for n, m in enumerate(found)]


def _at(given: Any, key: int) -> str | None:
    if given is None or isinstance(given, str):
        return given
    return given.get(key) if isinstance(given, Mapping) else given[key]
