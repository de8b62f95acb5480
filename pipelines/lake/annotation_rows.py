"""What a row of `annotations` must be: the checks of what is to be added, in pixels of the stored frame."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from pipelines.lake.arrow import Readable
from pipelines.lake.schema import SCHEMAS, make_annotation_id, make_frame_id
from pipelines.lake.sql import one_of
from vfm_ops.errors import UsageError
from vfm_ops.track.masks import Rle, check_rle, encode_rle, rle_text

KINDS = ("label", "box", "mask", "track", "tag", "verdict")
# What a caller may say of an annotation. The rest is filled in.
GIVEN = (
    *("annotation_id", "asset_id", "frame_id", "frame_index", "pts_s", "object_id", "kind"),
    *("label", "box", "mask", "score", "prompts", "author", "source"),
)
OUTSIDE_PX = 1.0  # by so much a box may stick out, as rounding makes it; it is clipped
AT_ONCE = 2000

Row = dict[str, Any]


def given_rows(rows: Any) -> list[Row]:
    """Rows as dicts: of mappings, or of what gives Arrow (a `pyarrow.Table`, a DataFrame of pandas or Polars)."""
    if hasattr(rows, "__arrow_c_stream__"):
        rows = pa.table(rows).to_pylist()
    elif isinstance(rows, Mapping):
        rows = [rows]
    return [dict(row) for row in rows]


def checked_rows(lake: Readable, rows: list[Row], author: str, source: str) -> list[Row]:
    """Complete rows but for their versions. UsageError for what is no annotation, or is of nothing in the lake."""
    placed = [_placed(row, f"annotation {number}") for number, row in enumerate(rows, 1)]
    assets = _assets(lake, {row["asset_id"] for row in placed})
    for number, row in enumerate(placed, 1):
        if row["asset_id"] not in assets:
            raise UsageError(f"annotation {number}: the lake has no asset {row['asset_id']!r}")
        row["asset_no"], media_type = assets[row["asset_id"]]
        _place_on_frame(row, media_type, f"annotation {number}")
    sizes = FrameSizes(lake, placed)
    for number, row in enumerate(placed, 1):
        _check_shape(row, sizes.find(row), f"annotation {number}")
        row["author"], row["source"] = row["author"] or author, row["source"] or source
        if not isinstance(row["author"], str) or not row["author"].strip():
            raise UsageError(f"annotation {number} has no `author`: say who says so")
        row["object_id"] = None if row["object_id"] is None else str(row["object_id"])
        row["annotation_id"] = row["annotation_id"] or _id_of(row)
        row["removed"] = False
    twice = [i for i, count in Counter(row["annotation_id"] for row in placed).items() if count > 1]
    if twice:
        raise UsageError(f"annotation {twice[0]} is given twice: an object is once on a frame; give another object_id")
    return placed


def _placed(row: Row, who: str) -> Row:
    """A row with every key, its kind and its asset. UsageError."""
    if unknown := [name for name in row if name not in GIVEN and row[name] is not None]:
        raise UsageError(f"{who}: there is no {unknown[0]!r}; an annotation has {', '.join(GIVEN)}")
    full = {name: row.get(name) for name in GIVEN}
    shape = "mask" if full["mask"] is not None else "box" if full["box"] is not None else None
    full["kind"] = full["kind"] or shape
    if full["kind"] not in KINDS:
        raise UsageError(f"{who} has the kind {full['kind']!r}: give one of {', '.join(KINDS)}")
    if full["kind"] in ("label", "tag", "verdict") and not full["label"]:
        raise UsageError(f"{who} is a {full['kind']} and has no label: say it there")
    if (full["kind"] in ("box", "mask", "track") and shape is None) or (full["kind"] == "mask" and shape == "box"):
        raise UsageError(f"{who} is a {full['kind']} and has no {'mask' if full['kind'] == 'mask' else 'box'}")
    if full["kind"] == "track" and full["object_id"] is None:
        raise UsageError(f"{who} is of a track and has no object_id, which is the same on all its frames")
    if full["frame_id"] is not None:
        asset_id, _, index = str(full["frame_id"]).rpartition(":")
        if not (asset_id and index.isascii() and index.isdigit()):
            raise UsageError(f"{who} is of frame {full['frame_id']!r}: a frame's id is ASSET:INDEX")
        if full["asset_id"] not in (None, asset_id) or full["frame_index"] not in (None, int(index)):
            raise UsageError(f"{who} is of frame {full['frame_id']}, and of another asset or frame_index")
        full["asset_id"], full["frame_index"] = asset_id, int(index)
    if not isinstance(full["asset_id"], str):
        raise UsageError(f"{who} says neither asset_id nor frame_id")
    prompts = full["prompts"]
    full["prompts"] = prompts if prompts is None or isinstance(prompts, str) else json.dumps(prompts)
    return full


def _place_on_frame(row: Row, media_type: str | None, who: str) -> None:
    if row["frame_index"] is None and row["kind"] in ("box", "mask", "track"):
        if media_type == "video":
            raise UsageError(f"{who} is on a video and says no frame_index")
        row["frame_index"] = 0
    if media_type == "image" and row["frame_index"]:
        raise UsageError(f"{who} is on frame {row['frame_index']} of a picture, which has frame 0 alone")
    row["frame_id"] = None if row["frame_index"] is None else make_frame_id(row["asset_id"], int(row["frame_index"]))


def _check_shape(row: Row, size: tuple[int, int] | None, who: str) -> None:
    """Mask as RLE and box as floats, of the frame's (height, width) where that is known. UsageError."""
    mask, box = row["mask"], row["box"]
    if isinstance(mask, np.ndarray):
        mask = encode_rle(mask.astype(bool))
    if mask is not None:
        mask = Rle(size=[int(n) for n in mask["size"]], counts=rle_text(mask["counts"]))
        try:
            runs = check_rle(mask, size)
        except UsageError as error:
            raise UsageError(f"{who}: {error}") from None
        if len(runs) < 2:
            raise UsageError(f"{who} has a mask without a pixel")
        size = size or (mask["size"][0], mask["size"][1])
        box = rle_box(mask) if box is None else box
    row["mask"] = mask
    row["box"] = None if box is None else _checked_box(box, size, who)


def _checked_box(box: Any, size: tuple[int, int] | None, who: str) -> list[float]:
    xyxy = np.asarray(box, np.float64).reshape(-1)
    if xyxy.shape != (4,) or not np.isfinite(xyxy).all() or (xyxy[2:] <= xyxy[:2]).any():
        raise UsageError(f"{who} has the box {xyxy.tolist()}: give x1, y1, x2, y2 in pixels, x2 > x1 and y2 > y1")
    if size is not None:
        if not box_inside(xyxy, size):
            raise UsageError(
                f"{who} has the box {xyxy.tolist()}, outside its frame of {size[1]} x {size[0]} pixels (width x height)"
            )
        xyxy = np.clip(xyxy, 0, [size[1], size[0]] * 2)
    return [float(v) for v in xyxy]


def box_inside(box: Any, size: tuple[int, int]) -> bool:
    """Whether an xyxy box lies in a frame of (height, width), to a pixel."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return min(x0, y0) >= -OUTSIDE_PX and x1 <= size[1] + OUTSIDE_PX and y1 <= size[0] + OUTSIDE_PX


def rle_box(mask: Rle) -> list[float]:
    """xyxy of a mask that has pixels."""
    x, y, w, h = coco.toBbox({"size": mask["size"], "counts": mask["counts"].encode("ascii")}).tolist()
    return [x, y, x + w, y + h]


def _id_of(row: Row) -> str:
    """Of an object that has a name, always the same; else a new one."""
    if row["object_id"] is None:
        return uuid.uuid4().hex
    return make_annotation_id(row["asset_id"], row["frame_index"], row["kind"], row["object_id"])


def _assets(lake: Readable, ids: Iterable[str]) -> dict[str, tuple[int | None, str | None]]:
    """asset_id -> its number (None in a lake of format 1) and media type, of those that are there."""
    found = {}
    columns = [c for c in ("asset_id", "asset_no", "media_type") if c in lake.schema("assets").names]
    for part in in_parts(ids):
        for row in lake.read("assets", columns, one_of("asset_id", part)).to_pylist():
            found[row["asset_id"]] = (row.get("asset_no"), row["media_type"])
    return found


class FrameSizes:
    """(height, width) of stored frames, and of frames that are not stored, as those of the same asset are.

    rows: of annotations, with asset_id; their `pts_s` is filled in where it lacks and the frame is stored.
    """

    def __init__(self, lake: Readable, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self._frames: dict[str, tuple[int, int]] = {}
        self._assets: dict[str, tuple[int, int]] = {}
        times: dict[str, float] = {}
        for part in in_parts({row["asset_id"] for row in rows}):
            for table in ("frames", "dropped"):
                columns = ["frame_id", "asset_id", "pts_s", "width", "height"]
                for frame in lake.read(table, columns, one_of("asset_id", part)).to_pylist():
                    times[frame["frame_id"]] = frame["pts_s"]
                    if frame["width"] and frame["height"]:
                        self._frames[frame["frame_id"]] = size = (frame["height"], frame["width"])
                        self._assets.setdefault(frame["asset_id"], size)
        for row in rows:
            if row.get("pts_s") is None and row.get("frame_id") in times:
                row["pts_s"] = times[row["frame_id"]]

    def find(self, row: Row) -> tuple[int, int] | None:
        """That of the frame of a row; None where nothing of its asset is stored."""
        return self._frames.get(row["frame_id"]) or self._assets.get(row["asset_id"])


def violations(lake: Readable) -> Iterator[str]:
    """What is wrong with rows of the table, a sentence each: shapes that do not fit their frames, ids that do not fit together.

    Of a file that changed since, sizes are not compared: its annotations are of the old one.
    """
    wrong: Counter[str] = Counter()
    example: dict[str, str] = {}
    columns = ["annotation_id", "asset_id", "asset_no", "frame_id", "frame_index", "box", "mask"]
    for batch in lake.scan("annotations", columns, batch_size=8192):
        rows = batch.to_pylist()
        assets = _assets(lake, {row["asset_id"] for row in rows})
        sizes = FrameSizes(lake, rows)
        for row in rows:
            number, media_type = assets.get(row["asset_id"], (None, None))
            same = number is None or row["asset_no"] in (None, number)
            for what in _faults(row, media_type, sizes.find(row) if same else None):
                wrong[what] += 1
                example.setdefault(what, row["annotation_id"])
    for what, count in wrong.items():
        yield f"annotations: {count} rows {what}, such as one of {example[what]}"


def _faults(row: Row, media_type: str | None, size: tuple[int, int] | None) -> Iterator[str]:
    index = row["frame_index"]
    if row["frame_id"] != (None if index is None else make_frame_id(row["asset_id"], index)) or (
        index and media_type == "image"
    ):
        yield "are of a frame that their asset can't have"
    if row["mask"] is not None:
        try:
            check_rle(row["mask"], size)
        except UsageError:
            yield "have a mask that does not fit its frame"
    if row["box"] is not None and size is not None and not box_inside(row["box"], size):
        yield "have a box outside its frame"


def in_parts(values: Iterable[str]) -> Iterable[list[str]]:
    """Values in lists that fit into a condition."""
    listed = sorted(values)
    return (listed[start : start + AT_ONCE] for start in range(0, len(listed), AT_ONCE))


def as_table(rows: list[Row]) -> pa.Table:
    """Rows in the table's schema."""
    return pa.Table.from_pylist(rows, SCHEMAS["annotations"])
