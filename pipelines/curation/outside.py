"""Items from elsewhere: evaluation sets to keep out, seeds to retrieve around. From folders, lakes and selections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.pool import Pool
from pipelines.curation.recipe import ItemSet
from pipelines.curation.vectors import list_values, vector_dim
from pipelines.lake import Lake
from pipelines.lake.sql import equals
from pipelines.search.columns import Column, embedding_columns, load_same
from vfm_ops.curate.decontaminate import EvaluationSet, find_contamination
from vfm_ops.curate.retrieval import check_same_space
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import quality_gray
from vfm_ops.media.source import MediaSource

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
_BATCH, _CHUNK = 32, 8192


@dataclass(frozen=True)
class OutsideSet:
    """Items of another place. ids: frame ids or file names. vectors float32 (M, D); hashes uint64 (M,); labels, if known."""

    name: str
    ids: list[str]
    vectors: np.ndarray
    hashes: np.ndarray | None
    labels: list[str] | None = None

    def classes(self) -> tuple[list[str], np.ndarray]:
        """Names of the classes, sorted, and each item's as a number, int64 (M,). UsageError when an item has none."""
        if self.labels is None or not all(self.labels):
            raise UsageError(
                f"the set {self.name!r} has items without a class: ingest them with labels, or put pictures into a folder "
                "for each class"
            )
        names, numbers = np.unique(self.labels, return_inverse=True)
        return names.tolist(), numbers


def load_item_set(lake: Lake, column: Column, wanted: ItemSet, labelled: bool = False) -> OutsideSet:
    """Reads a set of items in the embedding space of `column`. UsageError when it is empty, gone, or of another space.

    labelled: with the assets' labels; those of a folder's pictures are their topmost folders.
    """
    found = _from_folder(column, wanted) if wanted.folder else _from_lake(lake, column, wanted, labelled)
    if not found.ids:
        raise UsageError(f"the set {wanted.name!r} holds no item: check its path, selection or frames")
    return found


def _from_lake(lake: Lake, column: Column, wanted: ItemSet, labelled: bool) -> OutsideSet:
    other = Lake.open(wanted.lake) if wanted.lake else lake
    theirs = _same_space(lake, other, column, wanted)
    present = f"{theirs.name} IS NOT NULL"
    table = other.read("frames", ["frame_id", "asset_id", "phash", theirs.name], filter=present)
    if wanted.selection or wanted.frames:
        table = table.filter(pc.is_in(table["frame_id"], value_set=_listed(other, wanted)))
    dim = vector_dim(other.schema("frames").field(theirs.name))
    chunks = table[theirs.name].chunks
    x_MD = np.concatenate([list_values(c, dim) for c in chunks]) if chunks else np.zeros((0, dim))
    hashes = None if table["phash"].null_count else table["phash"].to_numpy()
    labels = _labels(other, table["asset_id"].to_pylist()) if labelled else None
    return OutsideSet(wanted.name, table["frame_id"].to_pylist(), x_MD.astype(np.float32), hashes, labels)


def _labels(lake: Lake, asset_ids: list[str]) -> list[str]:
    """The label of each asset; empty where it has none."""
    known = lake.read("assets", ["asset_id", "label"], filter="label IS NOT NULL")
    label_of = dict(zip(known["asset_id"].to_pylist(), known["label"].to_pylist(), strict=True))
    return [label_of.get(i, "") for i in asset_ids]


def _listed(lake: Lake, wanted: ItemSet) -> pa.Array:
    """Frame ids that the set names."""
    if not wanted.selection:
        return pa.array(wanted.frames, pa.string())
    ids = lake.read("selections", ["frame_id"], filter=f"{equals('selection', wanted.selection)} AND kept")["frame_id"]
    if not len(ids):
        raise UsageError(f"{lake.root} has no selection {wanted.selection!r}, or it keeps nothing")
    return ids.combine_chunks()


def _same_space(lake: Lake, other: Lake, column: Column, wanted: ItemSet) -> Column:
    """Their column of our model. UsageError when they have none: vectors of two models don't compare."""
    columns = embedding_columns(other)
    theirs = next((c for c in columns if c.name == column.name), columns[0])
    dim, data_dim = (vector_dim(place.schema("frames").field(c.name)) for place, c in ((other, theirs), (lake, column)))
    check_same_space(f"the set {wanted.name!r}", dim, data_dim, theirs.digest or None, column.digest or None)
    if not (theirs.digest and column.digest) and theirs.spec != column.spec:
        raise UsageError(
            f"the set {wanted.name!r} was embedded by {theirs.spec}, but the data by {column.spec}: use one model for both"
        )
    return theirs


def _from_folder(column: Column, wanted: ItemSet) -> OutsideSet:
    folder = Path(wanted.folder or "").expanduser()
    if not folder.is_dir():
        raise UsageError(f"the set {wanted.folder} is no folder, lake or selection:NAME")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise UsageError(f"the folder {folder} holds no pictures ({', '.join(PICTURES)})")
    embedder = load_same(column)
    ids: list[str] = []
    vectors, hashes = [], []
    for names, pictures in _pictures(folder, files):
        views = [embedder.view.apply(p) for p in pictures]
        vectors.append(embedder.embed_images(views if embedder.view.fit == "naflex" else np.stack(views)))
        hashes += [phash(quality_gray(p)) for p in pictures]
        ids += names
    x_MD = np.concatenate(vectors) if vectors else np.zeros((0, 1))
    labels = [parts[0] if len(parts := Path(name).parts) > 1 else "" for name in ids]
    return OutsideSet(wanted.name, ids, x_MD.astype(np.float32), np.array(hashes, np.uint64), labels)


def _pictures(folder: Path, files: list[Path]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Names and decoded pictures, some at a time; what can't be decoded is left out, as nothing can copy it."""
    limits = Limits()
    for low in range(0, len(files), _BATCH):
        names, pictures = [], []
        for path in files[low : low + _BATCH]:
            try:
                picture = decode_image(MediaSource(str(path)).read(limits.max_image_bytes), limits, str(path))
            except MediaError:
                continue
            names.append(str(path.relative_to(folder)))
            pictures.append(picture)
        if names:
            yield names, pictures


def drop_contaminated(pool: Pool) -> None:
    """Drops near-copies of the evaluation sets, each with the set and the item that it copies."""
    settings = pool.recipe.decontaminate
    if settings is None:
        return
    sets = [load_item_set(pool.lake, pool.column, s) for s in settings.sets]
    for outside in sets:
        pool.sets[outside.name] = len(outside.ids)
        for low in range(0, len(outside.ids), _CHUNK):
            rows = np.flatnonzero(pool.alive)
            if not len(rows):
                return
            part = slice(low, low + _CHUNK)
            hashes = outside.hashes[part] if outside.hashes is not None and pool.items.hashed[rows].all() else None
            evaluation = EvaluationSet(outside.name, outside.vectors[part], hashes)
            found = find_contamination(
                [evaluation],
                map_blocks=pool.vectors(rows).map_blocks,
                hashes=pool.items.hash[rows] if hashes is not None else None,
                cosine=settings.cosine,
                radius=settings.radius,
            )
            items = rows[[f.row for f in found]] if found else rows[:0]
            names = [outside.ids[low + f.evaluation_row] for f in found]
            pool.decisions.settle("contaminates", items, evaluation=outside.name, item=names)
