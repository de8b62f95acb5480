"""Ops on videos and on shots: the frames that an op wants of a video go through it, in order, chunk by chunk.

Each chunk's rows are written as fragments, and the op's state goes to the lake's journal: a killed run goes on from there.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipelines.lake import Lake
from pipelines.lake.journal import Journal
from pipelines.lake.schema import table_schema
from pipelines.lake.sql import equals
from pipelines.process.frames import Outcome, closing_rows, stored_size
from pipelines.process.measure import StageStats
from pipelines.process.ops import PlannedOp
from pipelines.process.recipe import Recipe
from pipelines.sources import RowReader, media_source
from vfm_ops.deadline import deadline
from vfm_ops.errors import MediaError, VfmError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.probe import Probe
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.op import NATIVE, Video, VideoFrame, VideoOp, VideoShot

VIEW = "frame"


class RunOnVideos:
    """Op: rows of `assets` (with `attempt`), all of them videos that were decoded before, to one closing row each."""

    def __init__(self, planned: PlannedOp, recipe: Recipe, lake: Lake) -> None:
        assert isinstance(planned.op, VideoOp)
        assert planned.op.table is not None
        self.planned, self.op, self.recipe, self.lake = planned, planned.op, recipe, lake
        self.table = planned.op.table.name
        self.schema = table_schema(planned.op.table, "video")
        self.sandbox = Sandbox(video_decoding(recipe), 1)

    def __call__(self, assets: pa.Table, stats: StageStats) -> Iterator[pa.Table]:
        """One video after another: an op on videos has a state, and a model that is busy anyway. stats: where its frames are
        counted.
        """
        for asset in assets.to_pylist():
            outcome = Outcome.of(asset, self.planned.key, self.planned.title)
            try:
                self._run(outcome, stats)
            except MediaError as e:
                outcome.fail(self.planned.title, e.kind, str(e))
            except VfmError:  # the run's error, such as a store's, or an op's that broke its contract
                raise
            except Exception as e:
                outcome.fail(self.planned.title, type(e).__name__, str(e), traceback.format_exc())
            yield closing_rows([outcome], {})

    def _run(self, outcome: Outcome, stats: StageStats) -> None:
        journal = Journal(self.lake, outcome.asset_id, outcome.run_key, outcome.etag, self.table)
        outcome.journal = journal.name
        source = media_source(outcome.source, RowReader())
        probe = self.sandbox.probe(source)
        video = shown_video(outcome.asset_id, outcome.uri, probe, self._shots(outcome.asset_id), self.recipe)
        saved = self.lake.attempt("read a journal", lambda _: journal.load())
        done, state = (saved[0], self.op.loads(video, saved[1])) if saved else (_nothing(), self.op.begin(video))
        wanted = self.op.wanted(video)
        frames = self.sandbox.frames(source, wanted[wanted >= done["next_frame"]], probe)
        for chunk in chunks(frames, video, self.op.chunk_frames, self.recipe):
            with deadline(self.op.deadline_s, f"op {self.op.name}"):
                state, rows = self.op.chunk(video, state, chunk)
            stats.rows += len(chunk)
            done = self._written(done, rows, outcome) | {"next_frame": chunk[-1].index + 1}
            if done["next_frame"] < probe.frame_count and (data := self.op.dumps(state)) is not None:
                journal.save(done, data)
        done = self._written(done, self.op.end(video, state), outcome)
        outcome.rows = done["rows"]
        outcome.written = {self.table: done["fragments"]}

    def _written(self, done: dict[str, Any], rows: list[dict[str, Any]], outcome: Outcome) -> dict[str, Any]:
        """What is done once these rows lie in fragments."""
        if not (rows := self.op.checked(rows)):
            return done
        fragments = self.lake.write_fragments(self.table, self._table(rows, outcome))
        return {**done, "rows": done["rows"] + len(rows), "fragments": done["fragments"] + fragments}

    def _shots(self, asset_id: str) -> tuple[VideoShot, ...]:
        names = [field.name for field in fields(VideoShot)]
        rows = self.lake.read("shots", names, equals("asset_id", asset_id)).to_pylist()
        return tuple(sorted((VideoShot(**row) for row in rows), key=lambda shot: shot.start_frame))

    def _table(self, rows: list[dict[str, Any]], outcome: Outcome) -> pa.Table:
        whose = {"asset_id": outcome.asset_id, "run_key": outcome.run_key, "op": self.planned.title}
        return pa.Table.from_pylist([{**row, **whose} for row in rows], self.schema)


def _nothing() -> dict[str, Any]:
    return {"next_frame": 0, "rows": 0, "fragments": []}


def shown_video(asset_id: str, uri: str, probe: Probe, shots: Sequence[VideoShot], recipe: Recipe) -> Video:
    """What an op is told of a video."""
    width, height = stored_size(probe.width, probe.height, recipe.jpeg.max_side)
    return Video(asset_id, uri, width, height, probe.fps or 0.0, probe.frame_count, tuple(shots))


def chunks(frames: Iterable[Frame], video: Video, size: int, recipe: Recipe) -> Iterator[list[VideoFrame]]:
    """A video's frames as an op sees them, in pixels of the stored frame, so many at a time."""
    cuts = frozenset(shot.start_frame for shot in video.shots)

    def shown(frame: Frame) -> VideoFrame:
        rgb = frame.views[VIEW]
        width, height = stored_size(frame.width, frame.height, recipe.jpeg.max_side)
        if (height, width) != rgb.shape[:2]:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return VideoFrame(frame.frame_index, frame.pts_s, np.ascontiguousarray(rgb), frame.frame_index in cuts)

    of_all = map(shown, frames)
    while chunk := list(islice(of_all, size)):
        yield chunk


def video_decoding(recipe: Recipe) -> DecodeSettings:
    """How a video is decoded a second time, whole, within the limits that its sampled frames were decoded in."""
    d = recipe.decode
    return DecodeSettings({VIEW: NATIVE}, d.decoder, jpeg=False, limits=d.limits())
