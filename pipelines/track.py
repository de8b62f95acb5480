"""The track op: when a video's frames have passed, its every frame goes through detect-then-track, chunk by chunk.

Each chunk's rows are written as fragments, and the tracker's state goes to the lake's journal: a killed run goes on from there.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipelines.detect import NATIVE_VIEW
from pipelines.frames import NATIVE, stored_size
from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.journal import Journal
from pipelines.recipe import Detect, Recipe
from pipelines.sources import RowReader, media_source
from vfm_ops.detect.base import Detector
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.track.detect_then_track import DetectThenTrack, DetectTrackSettings
from vfm_ops.track.load import load_network
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.rows import TrackRow
from vfm_ops.track.tracker import TrackerSettings


class TrackVideos:
    """Op: passes working tables on; at a good video's closing row, tracks it and adds what it wrote to the outcome."""

    def __init__(self, recipe: Recipe, lake: Lake, detector: Detector) -> None:
        assert recipe.track is not None
        assert recipe.detect is not None
        self.recipe, self.lake, self.track = recipe, lake, recipe.track
        self.detector = _AtThreshold(detector, recipe.detect)
        self.prompts = [p.strip() for p in recipe.detect.prompts.split(".") if p.strip()]
        self.network = load_network(recipe.track.model, device=recipe.resources.device)
        limit = recipe.track.max_objects
        bank = TrackerSettings(bank=BankPolicy(max_prompted=4), max_objects=limit)
        self.settings = DetectTrackSettings(recipe.track.detect_every, recipe.detect.threshold, limit, tracker=bank)
        decode = DecodeSettings({NATIVE: NATIVE_VIEW}, recipe.decode.decoder, jpeg=False, quality=False, phash=False)
        self.sandbox = Sandbox(decode, 1)

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Tables in, tables out, in order."""
        for rows in tables:
            outcomes = rows["outcome"].to_pylist()
            if any(outcomes):
                column = pa.array([o and self._tracked(json.loads(o)) for o in outcomes], pa.string())
                rows = rows.set_column(rows.schema.get_field_index("outcome"), "outcome", column)
            yield rows

    def _tracked(self, outcome: dict[str, Any]) -> str:
        """The outcome as JSON, with tracks when it is that of a good video."""
        if outcome["stage"] is None and outcome["probe"] and outcome["probe"].get("codec"):
            try:
                self._track_video(outcome)
            except MediaError as e:
                outcome.update(stage="track", error_type=e.kind, message=str(e))
            except Exception as e:
                outcome.update(
                    stage="track", error_type=type(e).__name__, message=str(e), traceback=traceback.format_exc()
                )
        return json.dumps(outcome)

    def _track_video(self, outcome: dict[str, Any]) -> None:
        journal = Journal(self.lake, outcome["asset_id"], outcome["run_key"], outcome["etag"])
        outcome["journal"] = journal.name
        saved = journal.load()
        if saved:
            done, state = saved
            tracker = DetectThenTrack.from_bytes(self.detector, self.network, state)
        else:
            done = {"next_frame": 0, "tracks": 0, "fragments": []}
            tracker = DetectThenTrack(self.detector, self.network, self.prompts, self.settings)
        cuts = {s["start_frame"] for s in outcome["shots"]}
        source = media_source(outcome["source"], RowReader())
        probe = self.sandbox.probe(source)
        frames = self.sandbox.frames(source, np.arange(done["next_frame"], probe.frame_count), probe)
        while chunk := list(self._steps(tracker, islice(frames, self.track.chunk_frames), cuts)):
            rows = [self._row(row, outcome) for _, tracks in chunk for row in tracks]
            if rows:
                done["fragments"] += self.lake.write_fragments("tracks", pa.Table.from_pylist(rows, SCHEMAS["tracks"]))
            done = {**done, "next_frame": chunk[-1][0] + 1, "tracks": done["tracks"] + len(rows)}
            if done["next_frame"] < probe.frame_count:
                journal.save(done, tracker.to_bytes())
        outcome["tracks"] = done["tracks"]
        outcome["written"] = {"tracks": done["fragments"]}

    def _steps(
        self, tracker: DetectThenTrack, frames: Iterable[Frame], cuts: set[int]
    ) -> Iterator[tuple[int, list[TrackRow]]]:
        """Frame index and track rows of each frame, in pixels of the stored frame."""
        for frame in frames:
            rgb = frame.views[NATIVE]
            width, height = stored_size(frame.width, frame.height, self.recipe.jpeg.max_side)
            if (height, width) != rgb.shape[:2]:
                rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
            result = tracker.step(frame.frame_index, frame.pts_s, np.ascontiguousarray(rgb), frame.frame_index in cuts)
            yield frame.frame_index, result.tracks

    def _row(self, row: TrackRow, outcome: dict[str, Any]) -> dict[str, Any]:
        return {
            "track_id": f"{outcome['asset_id']}:t{row.track_id}",
            "asset_id": outcome["asset_id"],
            "run_key": outcome["run_key"],
            "frame_index": row.frame_index,
            "pts_s": row.pts_s,
            "label": row.label,
            "box": row.box.tolist(),
            "mask": row.mask and {"size": list(row.mask["size"]), "counts": _text(row.mask["counts"])},
            "score": row.score,
            "visible": row.visible,
        }


class _AtThreshold:
    """A detector as detect-then-track calls it, at the recipe's threshold."""

    def __init__(self, detector: Detector, settings: Detect) -> None:
        self.detector, self.settings = detector, settings

    def detect(self, images: Any, prompts: Any) -> list[Any]:
        """See `vfm_ops.track.detect_then_track.BoxDetector`."""
        return self.detector.detect(images, prompts, thresholds=self.settings.threshold, nms_iou=self.settings.nms_iou)


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
