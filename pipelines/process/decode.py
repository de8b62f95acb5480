"""The decode op: assets in, frames out, then one closing row for each asset. It never raises for a bad asset."""

from __future__ import annotations

import queue
import threading
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.lake import Lake
from pipelines.lake.ledger import other_samplings
from pipelines.lake.sql import one_of
from pipelines.process.frames import Outcome, closing_rows, frame_rows
from pipelines.process.recipe import Recipe
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.probe import Probe
from vfm_ops.media.sampling import Sampling
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.shots import Shot, detect_shots, shot_detector
from vfm_ops.media.sniff import IMAGE_FORMATS, sniff
from vfm_ops.media.source import MediaSource
from vfm_ops.media.view import View

ROWS = 32  # frames in one working table
HELD_FRAMES = 128  # of one video, kept encoded until its shots are known, so that it is decoded once


class DecodeAssets:
    """Op: rows of `assets` (with `attempt`) to working tables of at most 32 frames.

    Decoding happens in `processes` killable children; views and JPEGs are made there, while pixels are hot.
    """

    def __init__(self, recipe: Recipe, views: dict[str, View], processes: int) -> None:
        self.recipe, self.views, self.processes = recipe, views, processes
        self.key = recipe.hash  # asked for once: it is a digest of the whole recipe, and this is of every asset
        d = recipe.decode
        settings = DecodeSettings(
            views=views,
            decoder=d.decoder,
            jpeg=recipe.jpeg.store,
            jpeg_quality=recipe.jpeg.quality,
            jpeg_max_side=recipe.jpeg.max_side,
            limits=d.limits(),
        )
        self.sandbox = Sandbox(settings, processes)
        s = recipe.sampling
        self.sampling = Sampling(s.mode, s.fps, s.every_n, s.per_shot, s.max_frames)

    def __call__(self, assets: pa.Table, known: dict[str, Known] | None = None) -> Iterator[pa.Table]:
        """Yields the stills first, batched together, then each video on its own, as many at once as there are decoders.

        known: by asset, what another sampling of the same pictures has made already: it is not decoded again.
        """
        self.known = known or {}
        rows = assets.to_pylist()
        done = [a for a in rows if a["asset_id"] in self.known and self.known[a["asset_id"]].probe.get("codec") is None]
        if done:  # a still is one frame under any sampling
            yield closing_rows([self._known_still(a) for a in done], self.views)
            rows = [a for a in rows if a not in done]
        stills = [a for a in rows if a["media_type"] == "image"]
        yield from self._stills(stills)
        videos = [a for a in rows if a["media_type"] != "image"]
        yield from interleave([partial(self._video, a) for a in videos], self.processes)

    def _stills(self, assets: list[dict[str, Any]]) -> Iterator[pa.Table]:
        outcomes = [Outcome.of(a, self.key) for a in assets]
        decoded = zip(outcomes, self._decode_stills(assets))
        while chunk := list(islice(decoded, ROWS)):
            good = []
            for outcome, frame in chunk:
                if isinstance(frame, MediaError):
                    outcome.fail("decode", frame.kind, str(frame))
                else:
                    outcome.probe = {"width": frame.width, "height": frame.height}
                    good.append((frame, outcome))
            yield self._rows([f for f, _ in good], [None] * len(good), [o for _, o in good])
            yield closing_rows([o for o, _ in chunk], self.views)

    def _known_still(self, asset: dict[str, Any]) -> Outcome:
        outcome = Outcome.of(asset, self.key)
        outcome.probe, outcome.known = self.known[asset["asset_id"]].probe, True
        return outcome

    def _decode_stills(self, assets: list[dict[str, Any]]) -> Iterator[Frame | MediaError]:
        """One result an asset, in order; a source that can't even be opened fails alone."""
        reader, unreadable = RowReader(), {}

        def sources() -> Iterator[MediaSource]:
            for number, asset in enumerate(assets):
                try:
                    yield media_source(asset, reader)
                except MediaError as e:
                    unreadable[number] = e
                    yield MediaSource(asset["uri"], data=b"")

        for number, result in enumerate(self.sandbox.images(sources())):
            yield unreadable.get(number, result)

    def _video(self, asset: dict[str, Any]) -> Iterator[pa.Table]:
        outcome = Outcome.of(asset, self.key)
        try:
            source = media_source(asset, RowReader())
            if asset["media_type"] is None and sniff(source.head()) in IMAGE_FORMATS:  # neither name nor listing told
                yield from self._stills([asset])
                return
            yield from self._video_frames(source, outcome)
        except MediaError as e:
            outcome.fail("decode", e.kind, str(e))
        except Exception as e:
            outcome.fail("decode", type(e).__name__, str(e), traceback.format_exc())
        yield closing_rows([outcome], self.views)

    def _video_frames(self, source: MediaSource, outcome: Outcome) -> Iterator[pa.Table]:
        probe = self.sandbox.probe(source)
        outcome.probe = probe_row(probe)
        shots: list[Shot] = []
        damage: MediaError | None = None
        frames: Iterable[Frame]
        if (known := self.known.get(outcome.asset_id)) is not None:
            shots, outcome.known = known.shots, True
            now = self._wanted(probe, shots)
            outcome.wanted = now.tolist()
            missing = np.setdiff1d(now, known.frames)
            frames = self.sandbox.frames(source, missing, probe) if len(missing) else []
        elif self.recipe.shots.detector == "none":
            now = self._wanted(probe, [])
            outcome.wanted = now.tolist()
            frames = self.sandbox.frames(source, now, probe)
        else:
            wanted = None if self.sampling.needs_shots else self._wanted(probe, [])
            one_pass = wanted is not None and len(wanted) <= HELD_FRAMES
            shots, held, damage = self._detect(source, probe, wanted if one_pass else None, outcome)
            if not one_pass:
                wanted = self._wanted(probe, shots)
            assert wanted is not None
            outcome.wanted = wanted.tolist()
            frames = held if one_pass else self.sandbox.frames(source, wanted, probe)
        still = StillShots(shots, self.recipe.shots.min_motion)
        salvaged = _Salvage(frames)
        kept = (f for f in salvaged if still.keeps(f, outcome))
        while chunk := list(islice(kept, ROWS)):
            ids = [still.shot_id(f.frame_index, outcome.asset_id) for f in chunk]
            yield self._rows(chunk, ids, [outcome] * len(chunk))
        if error := salvaged.error or damage:
            raise error

    def _rows(self, frames: list[Frame], shot_ids: list[str | None], outcomes: list[Outcome]) -> pa.Table:
        """Frames as rows, counted in their outcomes.

        Counted here and nowhere else, after the rows are made: the driver settles an asset when as many rows have come
        as its outcome counts, so that a frame which is counted and then lost to an error would keep it open for good.
        """
        rows = frame_rows(frames, shot_ids, outcomes, self.views, self.recipe.jpeg.max_side)
        for outcome in outcomes:
            outcome.frames += 1
        return rows

    def _wanted(self, probe: Probe, shots: list[Shot]) -> np.ndarray:
        return self.sampling.indices(
            probe.pts_s, probe.keyframes, [(s.start_frame, s.end_frame) for s in shots] or None
        )

    def _detect(
        self, source: MediaSource, probe: Probe, wanted: np.ndarray | None, outcome: Outcome
    ) -> tuple[list[Shot], list[Frame], MediaError | None]:
        """See `find_shots`; they are rows of the outcome, too."""
        detector, shots, held, damage = find_shots(self.sandbox, source, probe, self.recipe, wanted)
        for n, shot in enumerate(shots):
            outcome.shots.append({"shot_id": shot_id(outcome.asset_id, n), "detector": detector, **asdict(shot)})
        return shots, held, damage


@dataclass(frozen=True)
class Known:
    """What an asset has under another sampling of the same pictures. frames: int64 indices. shots: in order."""

    frames: np.ndarray
    shots: list[Shot]
    probe: dict[str, Any]


def known_assets(lake: Lake, recipe: Recipe, asset_ids: list[str]) -> dict[str, Known]:
    """What assets have under other samplings of a recipe, by asset; only those that were decoded whole."""
    own = one_of("asset_id", asset_ids)
    others = f"{other_samplings(recipe.hash)} AND {own}"
    probes = {r["asset_id"]: r["probe"] for r in lake.read("ledger", ["asset_id", "probe"], others).to_pylist()}
    if not probes:
        return {}
    frames: dict[str, list[int]] = {i: [] for i in probes}
    for table in ("frames", "dropped"):
        for row in lake.read(table, ["asset_id", "frame_index"], own).to_pylist():
            if row["asset_id"] in frames:
                frames[row["asset_id"]].append(row["frame_index"])
    names = [f.name for f in fields(Shot)]
    shots: dict[str, list[Shot]] = {i: [] for i in probes}
    for row in sorted(lake.read("shots", ["asset_id", *names], own).to_pylist(), key=lambda r: r["start_frame"]):
        if row["asset_id"] in shots:
            shots[row["asset_id"]].append(Shot(**{name: row[name] for name in names}))
    return {i: Known(np.array(frames[i], np.int64), shots[i], probe or {}) for i, probe in probes.items()}


class _Salvage:
    """Passes frames on until they end in an error, which is kept: the frames before it are then handed on like any."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = frames
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._frames
        except Exception as e:
            self.error = e


def interleave(makers: list[Callable[[], Iterable[Any]]], workers: int) -> Iterator[Any]:
    """Runs up to `workers` iterables at once in threads and yields what they give as it comes; a few items wait at most."""
    todo: queue.SimpleQueue[Callable[[], Iterable[Any]]] = queue.SimpleQueue()
    for maker in makers:
        todo.put(maker)
    out: queue.Queue[Any] = queue.Queue(maxsize=4 * workers)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            while not stop.is_set():
                maker = todo.get_nowait()
                if not all(put((item, None)) for item in maker()):
                    return
        except queue.Empty:
            put((_DONE, None))
        except BaseException as e:
            put((_DONE, e))

    running = min(workers, len(makers))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(running)]
    for thread in threads:
        thread.start()
    try:
        while running:
            item, error = out.get()
            if error is not None:
                raise error
            if item is _DONE:
                running -= 1
            else:
                yield item
    finally:
        stop.set()


_DONE = object()


def find_shots(
    sandbox: Sandbox, source: MediaSource, probe: Probe, recipe: Recipe, wanted: np.ndarray | None = None
) -> tuple[str, list[Shot], list[Frame], MediaError | None]:
    """The detector's name, a video's shots, from every frame's thumbnail, the `wanted` frames, kept from the same pass, and the
    damage that ended it.
    """
    settings = recipe.shots
    shortest = max(1, round(settings.min_length_s * probe.fps))
    detector = shot_detector(settings.detector, threshold=settings.threshold, min_length=shortest)
    held: list[Frame] = []
    damage: list[MediaError] = []

    def thumbnails() -> Iterator[np.ndarray]:
        nothing = np.zeros(0, np.int64)
        try:
            for chunk, frames in sandbox.frames_and_thumbnails(
                source, nothing if wanted is None else wanted, probe, detector.thumbnail_width
            ):
                held.extend(frames)
                if chunk is not None:
                    yield chunk
        except MediaError as e:
            damage.append(e)

    shots = detect_shots(thumbnails(), probe.pts_s, probe.duration_s, detector)
    return detector.name, shots, held, damage[0] if damage else None


class StillShots:
    """Looks up the shot of a frame, and leaves out the frames of shots that hardly move."""

    def __init__(self, shots: list[Shot], min_motion: float | None) -> None:
        self.shots, self.min_motion = shots, min_motion
        self._starts = [s.start_frame for s in shots]

    def _number(self, frame_index: int) -> int:
        return bisect_right(self._starts, frame_index) - 1

    def shot_id(self, frame_index: int, asset_id: str) -> str | None:
        """Id of the shot that holds a frame; None where shots were not asked for."""
        return shot_id(asset_id, self._number(frame_index)) if self.shots else None

    def keeps(self, frame: Frame, outcome: Outcome) -> bool:
        """False, and counted, for a frame of a shot below the bound."""
        if self.min_motion is None or not self.shots:
            return True
        if self.shots[self._number(frame.frame_index)].motion >= self.min_motion:
            return True
        reason = f"motion below {self.min_motion:g}"
        outcome.dropped[reason] = outcome.dropped.get(reason, 0) + 1
        return False


def shot_id(asset_id: str, number: int) -> str:
    """Id of a shot: its asset and its number, from 0."""
    return f"{asset_id}:s{number}"


def probe_row(probe: Probe) -> dict[str, Any]:
    """A probe as the ledger stores it."""
    streams = f"stream {probe.stream_index}, the default of {probe.streams}" if probe.streams > 1 else "the only one"
    row = {name: getattr(probe, name) for name in ("width", "height", "duration_s", "fps", "codec", "rotation")}
    return {**row, "frames": probe.frame_count, "streams": streams}
