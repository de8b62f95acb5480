"""The items that a curation decides about: frames of one version of a lake, and what is known of each but its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.filters import filter_errors, split_filter
from pipelines.lake.query import check_filter
from pipelines.search.columns import Column, embedding_columns
from vfm_ops.allocator import give_back_memory
from vfm_ops.errors import UsageError

QUALITY = ("sharpness", "luminance", "contrast", "entropy")


@dataclass(frozen=True)
class Items:
    """Columns of equal length N, in scan order.

    frame_id: string array. position, row_id: where they lie in that version. asset int32, into asset_ids. hash uint64, with
    hashed bool. width, height, pts_s, quality (by name), age (seconds since the epoch when its asset was found; NaN unknown),
    video bool: of a video.
    """

    version: int
    frame_id: pa.Array
    position: np.ndarray
    row_id: np.ndarray
    asset_ids: pa.Array
    asset: np.ndarray
    hash: np.ndarray
    hashed: np.ndarray
    width: np.ndarray
    height: np.ndarray
    pts_s: np.ndarray
    quality: dict[str, np.ndarray]
    age: np.ndarray
    video: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def name(self, item: int) -> str:
        """The frame id of an item."""
        return str(self.frame_id[int(item)].as_py())

    def pixels(self) -> np.ndarray:
        """Width times height, float64."""
        return self.width.astype(np.float64) * self.height

    def preference(self, keep: tuple[str, ...]) -> list[tuple[np.ndarray, str]]:
        """Columns for `keep_one`: resolution, sharpness, oldest, newest."""
        columns = {
            "resolution": (self.pixels(), "max"),
            "sharpness": (self.quality["sharpness"], "max"),
            "oldest": (self.age, "min"),
            "newest": (self.age, "max"),
        }
        return [columns[name] for name in keep]


def choose_column(lake: Lake, wanted: str | None) -> Column:
    """The embedding column to curate by. UsageError when there is none, or several and none was named."""
    columns = embedding_columns(lake)
    if wanted is None:
        if len(columns) > 1:
            specs = ", ".join(c.spec for c in columns)
            raise UsageError(
                f"{lake.root} has several embedding columns: name one as `column` of the recipe; there are {specs}"
            )
        return columns[0]
    named = [c for c in columns if wanted in (c.name, c.spec)]
    if not named:
        raise UsageError(f"{lake.root} has no column of {wanted}; there are {', '.join(c.spec for c in columns)}")
    return named[0]


def load_items(lake: Lake, version: int, assets_version: int, where: str | None = None) -> Items:
    """Reads the items of a version of `frames` and of its assets, those where SQL over both holds. UsageError when none is."""
    frames = lake.dataset("frames", version)
    if frames is None or frames.count_rows() == 0:
        raise UsageError(f"{lake.root} has no frames yet: run vfm process --lake {lake.root} first")
    assets = lake.table("assets", assets_version)
    wanted = ["frame_id", "asset_id", "pts_s", "width", "height", "phash", "quality"]
    scanner = frames.scanner(columns=wanted, with_row_id=True, scan_in_order=True, batch_size=65536)
    table = pa.Table.from_batches(_compact(batch) for batch in scanner.to_batches())
    position = np.arange(table.num_rows)
    if where is not None and where.strip():
        inside = _matching(lake, frames, assets, table, where)
        table, position = table.filter(pa.array(inside)), position[inside]
    if not table.num_rows:
        raise UsageError(f"no frame of {lake.root} satisfies {where!r}: widen the recipe's where")
    items = _items(assets, version, table, position)
    del table
    give_back_memory()
    return items


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Asset ids as a dictionary: videos repeat them."""
    columns = {name: batch[name] for name in batch.schema.names}
    return pa.record_batch(columns | {"asset_id": batch["asset_id"].dictionary_encode()})


def _matching(lake: Lake, frames: Any, assets: Any, table: pa.Table, where: str) -> np.ndarray:
    split = split_filter(where, lake.schema("frames").names, SCHEMAS["assets"].names)
    inside = np.ones(table.num_rows, bool)
    if split.frames is not None:
        check_filter(lake, "frames", split.frames)
        with filter_errors("frames", split.frames):
            rows = frames.to_table(columns=["frame_id"], filter=split.frames, with_row_id=True)["_rowid"]
        inside &= pc.is_in(table["_rowid"], value_set=_flat(rows)).to_numpy()
    if split.assets is not None:
        check_filter(lake, "assets", split.assets)
        with filter_errors("assets", split.assets):
            ids = _flat(assets.to_table(columns=["asset_id"], filter=split.assets)["asset_id"])
        inside &= pc.is_in(table["asset_id"].cast(pa.string()), value_set=ids).to_numpy()
    return inside


def _items(assets: Any, version: int, table: pa.Table, position: np.ndarray) -> Items:
    encoded = table["asset_id"].unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    asset_ids, asset = encoded.dictionary, encoded.indices.to_numpy()
    age, video = _assets(assets, asset_ids)
    phash, quality = table["phash"], table["quality"].combine_chunks()
    return Items(
        version=version,
        frame_id=_flat(table["frame_id"]),
        position=position,
        row_id=table["_rowid"].to_numpy(),
        asset_ids=asset_ids,
        asset=asset,
        hash=phash.fill_null(0).to_numpy(),
        hashed=phash.is_valid().to_numpy(),
        width=table["width"].fill_null(0).to_numpy(),
        height=table["height"].fill_null(0).to_numpy(),
        pts_s=_floats(table["pts_s"]),
        quality={name: _floats(pc.struct_field(quality, name)) for name in QUALITY},
        age=age[asset],
        video=video[asset],
    )


def _assets(dataset: Any, asset_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """When each asset was found (seconds since the epoch), and whether it is a video."""
    assets = dataset.to_table(columns=["asset_id", "discovered_at", "media_type"])
    found = (
        pc.index_in(asset_ids, value_set=_flat(assets["asset_id"]))
        if assets.num_rows
        else pa.nulls(len(asset_ids), pa.int32())
    )
    when = _floats(assets["discovered_at"].cast(pa.int64()).take(found)) / 1e6
    video = pc.equal(assets["media_type"].take(found), "video").fill_null(False).to_numpy()
    return when, video


def _flat(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    return pa.concat_arrays(merged.chunks) if isinstance(merged, pa.ChunkedArray) else merged


def _floats(column: Any) -> np.ndarray:
    """float64, NaN for null."""
    flat = _flat(column) if isinstance(column, pa.ChunkedArray) else column
    return flat.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
