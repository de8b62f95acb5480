"""One more model's columns for frames that a lake already holds: fragment by fragment, from the stored JPEGs.

What is added to a fragment is a data file of its own, committed when it is done: no JPEG is rewritten, and a killed run goes on
with the fragments that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import pyarrow as pa

from pipelines.cluster import connect, place
from pipelines.embed import EmbedFrames
from pipelines.frames import Outcome, frame_rows
from pipelines.lake import Lake, Lease, embedding_column, new_run_id, patches_column
from pipelines.recipe import Embed, Recipe, Resources
from pipelines.stages import model_fields, model_views
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View
from vfm_ops.scheduling import take_long_turns

ROWS = 32


def embed_lake(lake: Lake, model: Embed, resources: Resources) -> int:
    """Adds a model's column to `frames` where it is missing, and fills it. Returns how many frames got a vector.

    Raises UsageError (a model that can't be had, a busy lake, a lake without frames) before anything is written.
    """
    fields = model_fields(Recipe(embed=(model,), resources=resources))
    if lake.count("frames") == 0:
        raise UsageError(f"{lake.root} has no frames yet: run vfm process first")
    with Lease(lake, new_run_id()):
        lake.ensure("frames", fields)
        return fill_column(lake, model, resources)


def fill_column(
    lake: Lake, model: Embed, resources: Resources, progress: Callable[[int, int], None] | None = None
) -> int:
    """Fills a model's column in every fragment that lacks it. Returns how many frames got a vector.

    The caller holds the lease and has made the column exist. UsageError when the lake stores no JPEGs.
    """
    columns = [embedding_column(model.model), *([patches_column(model.model)] if model.patch_tokens else [])]
    fragments = sorted({f for column in columns for f in lake.fragments_without("frames", column)})
    if not fragments:
        return 0
    if lake.count("frames", filter="jpeg IS NOT NULL") == 0:
        raise UsageError(
            f"the frames of {lake.root} were stored without JPEGs: process them again with {model.model} in the recipe"
        )
    import ray

    connect()
    where = place(resources)
    ds = ray.data.from_arrow([pa.table({"fragment": [f]}) for f in fragments]).map_batches(
        FillFragment,
        fn_constructor_args=(lake, model, resources, where.threads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=where.actors[0], max_size=where.actors[1]),
        num_cpus=where.cpus,
        num_gpus=where.gpus,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    filled, done = 0, 0
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            lake.commit_columns("frames", row["written"])
            filled, done = filled + row["filled"], done + 1
            if progress:
                progress(done, len(fragments))
    return filled


class FillFragment:
    """Actor: decodes the JPEGs of a fragment and writes its new column."""

    def __init__(self, lake: Lake, model: Embed, resources: Resources, threads: int) -> None:
        take_long_turns()  # before the model's threads and the decoders are started
        self.lake = lake
        self.views = model_views(Recipe(embed=(model,)))
        self.sandbox = Sandbox(DecodeSettings(views=self.views, jpeg=False, quality=False, phash=False), threads)
        self.embed = EmbedFrames(model, resources, threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        """block: one fragment id. Returns what to commit. A JPEG that can't be decoded keeps a null."""
        fragment = block["fragment"][0].as_py()
        rowids: deque[list[int]] = deque()
        schema = pa.schema([("_rowid", pa.uint64()), *self.embed.fields])
        filled = [
            rows.append_column("_rowid", pa.array(rowids.popleft(), pa.uint64())).select(schema.names).cast(schema)
            for rows in self.embed.stream(self._views(fragment, rowids))
        ]
        columns = pa.concat_tables(filled) if filled else schema.empty_table()
        return pa.table(
            {"written": [self.lake.write_columns("frames", fragment, columns)], "filled": [columns.num_rows]}
        )

    def _views(self, fragment: int, rowids: deque[list[int]]) -> Iterator[pa.Table]:
        for batch in self.lake.scan_fragment("frames", fragment, ["frame_id", "jpeg"], ROWS):
            stored = [r for r in batch.to_pylist() if r["jpeg"] is not None]
            decoded = self.sandbox.images([MediaSource(r["frame_id"], data=r["jpeg"]) for r in stored])
            good = [(r, f) for r, f in zip(stored, decoded) if not isinstance(f, MediaError)]
            if good:
                rowids.append([r["_rowid"] for r, _ in good])
                yield _rows([f for _, f in good], self.views)


def _rows(frames: list[Frame], views: dict[str, View]) -> pa.Table:
    nobody = Outcome("", "", "", 0, "", None)
    return frame_rows(frames, [None] * len(frames), [nobody] * len(frames), views)
