"""Which rows of a lake are trained on, in which order, with which labels and captions; and how a batch of them is read.

The order is by frame id, whatever the layout of the table. Table versions are pinned, so that a resumed run reads the rows
of the run that it resumes; a digest of ids, labels and captions tells when they are gone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.selections import kept_frames, read_rows
from pipelines.lake import Lake
from pipelines.pretraining.settings import Plan
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.pretrain.data import Samples

_LIMITS = Limits()


@dataclass(frozen=True)
class LakeItems:
    """Frames of a lake, ready to be read by position. Pickles as its arrays; a worker opens the table itself.

    row_ids: of `frames` at `version`, in the order of frame ids. labels: int64 or None. captions: text or lists, or None.
    """

    root: str
    version: int
    row_ids: np.ndarray
    labels: np.ndarray | None = None
    captions: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def load(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Samples (id, image uint8 (H, W, 3), label, caption) at these positions, in this order.

        A frame that can't be decoded is replaced by the next one that can: every batch stays full, and the same on each run.
        """
        rows = _frames(self.root, self.version)._take_rows(
            [int(self.row_ids[i]) for i in indices], ["frame_id", "jpeg"]
        )
        return [
            self._sample(int(i), name, jpeg)
            for i, name, jpeg in zip(indices, rows["frame_id"].to_pylist(), rows["jpeg"].to_pylist())
        ]

    def _sample(self, index: int, name: str, jpeg: bytes) -> dict[str, Any]:
        first_error = None
        for _ in range(len(self)):
            try:
                sample: dict[str, Any] = {"id": name, "image": decode_image(jpeg, _LIMITS, name)}
                break
            except MediaError as error:
                first_error = first_error or error
            index = (index + 1) % len(self)
            row = _frames(self.root, self.version)._take_rows([int(self.row_ids[index])], ["frame_id", "jpeg"])
            name, jpeg = row["frame_id"][0].as_py(), row["jpeg"][0].as_py()
        else:
            raise UsageError(f"no frame of {self.root} can be decoded: {first_error}")
        if self.labels is not None:
            sample["label"] = self.labels[index]
        if self.captions is not None:
            sample["caption"] = self.captions[index].as_py()
        return sample


@dataclass(frozen=True)
class MemoryItems:
    """Samples in memory behind the same interface, for benchmarks and tests."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (N,) or None."""
        return self.samples.labels

    @property
    def captions(self) -> Sequence[Any] | None:
        """Texts, lists of texts, or None."""
        return self.samples.captions

    def load(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Samples at these positions, in this order."""
        return [self.samples[int(i)] for i in indices]


def captions_of(items: LakeItems | MemoryItems, place: int) -> list[str]:
    """Captions of one item: none, one, or several."""
    value: Any = None if items.captions is None else items.captions[int(place)]
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    return [text for text in (value if isinstance(value, list) else [value]) if text]


@lru_cache(maxsize=4)
def _frames(root: str, version: int) -> Any:
    """The open table, once in a process."""
    return Lake(root).table("frames", version)


@dataclass(frozen=True)
class Corpus:
    """Training items, held-out items, and what the model card says of them."""

    train: LakeItems | MemoryItems
    held: LakeItems | MemoryItems | None
    classes: tuple[str, ...]
    versions: dict[str, int]
    digest: str
    left_out: int  # frames without the label or caption that the objective reads
    name: str = "all frames"


def resolve(lake: Lake, plan: Plan, versions: dict[str, int] | None = None) -> Corpus:
    """Reads which frames are trained on. versions: of the tables of a run that is resumed.

    Raises UsageError: nothing to train on, an unknown column or selection, a selection that names frames that are gone,
    no label or caption where the objective reads one.
    """
    pinned = versions or {
        table: dataset.version
        for table in ("frames", "assets", "selections")
        if (dataset := lake.dataset(table)) is not None
    }
    if "frames" not in pinned:
        raise UsageError(f"{lake.root} has no frames yet: run vfm process --lake {lake.root}")
    rows = _read_frames(lake, pinned, plan)
    chosen = _choose(lake, pinned, plan.selection, rows)
    wanted = [c for c in ("label", "caption") if {"label": plan.needs_labels, "caption": plan.needs_captions}[c]]
    keep = np.ones(chosen.num_rows, bool)
    for column in wanted:
        keep &= pc.is_valid(chosen[column]).to_numpy()
        if not keep.any():
            key = getattr(plan.run, f"{column}_column")
            raise UsageError(
                f"{plan.objective} needs {column}s, and column {key} of {lake.root} holds none: ingest them, "
                f"or name another column with {column}_column"
            )
    used = chosen.filter(pa.array(keep))
    classes = tuple(str(c) for c in sorted(v for v in pc.unique(used["label"]).to_pylist() if v is not None))
    held_mask = _held_out(lake, pinned, plan, used, rows, bool(classes))
    train = _items(lake, pinned["frames"], used.filter(pa.array(~held_mask)), classes)
    held: LakeItems | None
    if plan.run.eval_selection:
        others = _choose(lake, pinned, plan.run.eval_selection, rows)
        held = _items(lake, pinned["frames"], others, classes)
    else:
        held = _items(lake, pinned["frames"], used.filter(pa.array(held_mask)), classes) if held_mask.any() else None
    if not len(train):
        raise UsageError(f"there is nothing to train on in {lake.root}: every frame is held out; lower holdout")
    name = plan.selection or "all frames"
    return Corpus(train, held, classes, pinned, _digest(used), chosen.num_rows - used.num_rows, name)


def _read_frames(lake: Lake, pinned: dict[str, int], plan: Plan) -> pa.Table:
    """frame_id, asset_id, _rowid, label, caption of every frame that has a picture, by frame id."""
    frames = lake.table("frames", pinned["frames"])
    assets = lake.table("assets", pinned["assets"]) if "assets" in pinned else None
    columns = {"label": plan.run.label_column, "caption": plan.run.caption_column}
    own = {k: c for k, c in columns.items() if c in frames.schema.names}
    for key, column in columns.items():
        if column not in frames.schema.names and (assets is None or column not in assets.schema.names):
            known = sorted({*frames.schema.names, *(assets.schema.names if assets else ())})
            raise UsageError(
                f"{key}_column: neither frames nor assets has a column {column}; they have {', '.join(known)}"
            )
    rows = frames.scanner(
        columns=["frame_id", "asset_id", *own.values()], filter="jpeg IS NOT NULL", with_row_id=True
    ).to_table()
    if not rows.num_rows:
        raise UsageError(f"{lake.root} stores no pictures: process it with jpeg.store=true")
    rows = rows.rename_columns([{v: k for k, v in own.items()}.get(c, c) for c in rows.column_names])
    for key in columns.keys() - own.keys():
        values = lake.table("assets", pinned["assets"]).to_table(columns=["asset_id", columns[key]])
        place = pc.index_in(rows["asset_id"], values["asset_id"].combine_chunks())
        rows = rows.append_column(key, values[columns[key]].combine_chunks().take(place.combine_chunks()))
    for key in ("label", "caption"):
        _check_type(rows[key].type, key, columns[key])
    return rows.sort_by("frame_id").combine_chunks()


def _check_type(kind: pa.DataType, key: str, column: str) -> None:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    right = text or (pa.types.is_integer(kind) if key == "label" else pa.types.is_list(kind))
    if not right and not pa.types.is_null(kind):
        wanted = "text or a list of texts" if key == "caption" else "text or a whole number"
        raise UsageError(f"{key}_column: column {column} is {kind}; a {key} is {wanted}")


def _choose(lake: Lake, pinned: dict[str, int], selection: str | None, rows: pa.Table) -> pa.Table:
    """The rows of a selection; all without one."""
    if selection is None:
        return rows
    names = kept_frames(lake, selection)["frame_id"]
    if "selections" in pinned:
        old = read_rows(lake, selection, pinned["selections"], ["frame_id", "kept"])
        names = old.filter(old["kept"])["frame_id"]
    place = pc.index_in(rows["frame_id"].combine_chunks(), pc.unique(names))
    found = rows.filter(pc.is_valid(place))
    missing = len(pc.unique(names)) - found.num_rows
    if missing:
        gone = pc.index_in(pc.unique(names), rows["frame_id"].combine_chunks())
        example = pc.unique(names).filter(pc.is_null(gone))[0].as_py()
        raise UsageError(
            f"selection {selection} no longer resolves: {missing} of its frames, such as {example}, are not in "
            f"{lake.root}; curate it again"
        )
    if not found.num_rows:
        raise UsageError(f"selection {selection} of {lake.root} keeps nothing: there is nothing to train on")
    return found


def _held_out(
    lake: Lake, pinned: dict[str, int], plan: Plan, used: pa.Table, rows: pa.Table, labelled: bool
) -> np.ndarray:
    """Mask of the frames kept for evaluation: whole assets, so that no video is on both sides."""
    assets = used["asset_id"].to_pylist()
    if plan.run.eval_selection:
        names = _choose(lake, pinned, plan.run.eval_selection, rows)["frame_id"].combine_chunks()
        return pc.is_in(used["frame_id"], names).to_numpy()
    if not (labelled or plan.needs_captions) or not plan.run.holdout:
        return np.zeros(len(assets), bool)
    return np.array([zlib.crc32(a.encode()) < plan.run.holdout * 2**32 for a in assets], bool)


def _items(lake: Lake, version: int, rows: pa.Table, classes: tuple[str, ...]) -> LakeItems:
    labels = None
    if classes:
        names = pc.cast(rows["label"], pa.string()).combine_chunks()
        labels = pc.fill_null(pc.index_in(names, pa.array(classes)), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    captions = rows["caption"].combine_chunks()
    return LakeItems(
        lake.root,
        version,
        rows["_rowid"].to_numpy(),
        labels,
        None if captions.null_count == len(captions) else captions,
    )


def _digest(rows: pa.Table) -> str:
    """Sixteen hex digits over ids, labels and captions in order."""
    sink = pa.BufferOutputStream()
    table = rows.select(["frame_id", "label", "caption"]).combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.blake2b(sink.getvalue(), digest_size=8).hexdigest()
