"""A chain of ops in one actor: each is built once, where it runs, and tables stream through them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import psutil
import pyarrow as pa

from pipelines.decode import DecodeAssets
from pipelines.detect import NATIVE_VIEW, DetectFrames
from pipelines.embed import EmbedFrames, column_fields
from pipelines.frames import NATIVE
from pipelines.lake import Lake, embedding_column
from pipelines.recipe import Recipe
from pipelines.units import read_unit
from pipelines.write import WriteRows
from vfm_ops.embed import describe_embedder
from vfm_ops.media.view import View
from vfm_ops.scheduling import take_long_turns

if TYPE_CHECKING:
    from pipelines.track import TrackVideos


def model_fields(recipe: Recipe) -> list[pa.Field]:
    """The columns that a recipe's models fill. Raises UsageError or WeightsUnavailable for a model that can't be had."""
    return [field for i, m in enumerate(recipe.embed) for field in column_fields(m, _describe(recipe, i))]


def model_views(recipe: Recipe) -> dict[str, View]:
    """What the decoder has to prepare for each model of a recipe, by column name."""
    views = {embedding_column(m.model): _describe(recipe, i).view for i, m in enumerate(recipe.embed)}
    return {**views, NATIVE: NATIVE_VIEW} if recipe.detect else views


class Chain:
    """Actor: builds the named ops ('decode', 'embed', 'detect', 'track', 'write') and runs a block through them, streaming.

    A block that is written gives exactly one row, so that a task is done or not done; there is no half.
    """

    def __init__(self, names: tuple[str, ...], lake: Lake, version: int, recipe: Recipe, threads: int) -> None:
        # Arrow's own allocator gives freed memory back to the system, which the next frames then have to ask for again.
        pa.set_memory_pool(pa.system_memory_pool())
        take_long_turns()  # before the models' threads and the decoders are started
        self.lake, self.version, self.names = lake, version, names
        self.actor = f"{socket.gethostname()}:{os.getpid()}"
        self.decode = DecodeAssets(recipe, model_views(recipe), threads) if "decode" in names else None
        self.embed = [EmbedFrames(m, recipe.resources, threads) for m in recipe.embed] if "embed" in names else []
        wanted = recipe.detect if "detect" in names else None
        self.detect = DetectFrames(wanted, recipe.resources.device) if wanted else None
        self.track = _track_op(recipe, lake, self.detect)
        detector = recipe.detect.model if recipe.detect else ""
        self.write = WriteRows(lake, [f for e in self.embed for f in e.fields], detector) if "write" in names else None
        self.waits = dict.fromkeys(names, 0.0)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """block: a unit where this chain decodes, else working tables. Yields working tables, or one RESULT row."""
        started = time.monotonic()
        waits = dict.fromkeys(self.names, 0.0)
        stream: Iterable[pa.Table] = [block]
        if self.decode:
            stream = _timed(waits, "decode", self.decode(read_unit(self.lake, self.version, block)))
        for op in self.embed:
            stream = _timed(waits, "embed", op.stream(stream))
        if self.detect:
            stream = _timed(waits, "detect", self.detect.stream(stream))
        if self.track:
            stream = _timed(waits, "track", self.track.stream(stream))
        if not self.write:
            yield from stream
            return
        for result in self.write.stream(stream):
            stats = {
                "seconds": _exclusive(waits, time.monotonic() - started),
                "actor": self.actor,
                "cpu": _cpu_seconds(),
            }
            yield result.set_column(result.schema.get_field_index("stats"), "stats", pa.array([json.dumps(stats)]))

    def close(self) -> None:
        """Ends the decoder processes."""
        if self.decode:
            self.decode.sandbox.close()


def _track_op(recipe: Recipe, lake: Lake, detect: DetectFrames | None) -> TrackVideos | None:
    if recipe.track is None or detect is None:
        return None
    from pipelines.track import TrackVideos  # imports torch, which the other ops do without

    return TrackVideos(recipe, lake, detect.detector)


def _timed(waits: dict[str, float], name: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Adds up how long the next op waits for this one."""
    iterator = iter(tables)
    while True:
        t = time.monotonic()
        rows = next(iterator, None)
        waits[name] += time.monotonic() - t
        if rows is None:
            return
        yield rows


def _exclusive(waits: dict[str, float], total: float) -> dict[str, float]:
    """Waits nest (embed waits for decode, the last op is the rest of the total); what is left to each is its own."""
    own, inner = {}, 0.0
    *names, last = waits
    for name in names:
        own[name] = max(0.0, waits[name] - inner)
        inner = max(inner, waits[name])
    return {**own, last: max(0.0, total - inner)}


def _describe(recipe: Recipe, index: int):
    m = recipe.embed[index]
    return describe_embedder(
        m.model,
        device=recipe.resources.device,
        runtime=m.runtime,
        precision=m.precision,
        patch_tokens=m.patch_tokens,
        preprocess=m.preprocess,
    )


def _cpu_seconds() -> float:
    """CPU time of this actor and its decoder children, in seconds."""
    me = psutil.Process(os.getpid())
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))
