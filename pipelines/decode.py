"""The decode op: assets in, frames out, then one closing row for each asset. It never raises for a bad asset."""

from __future__ import annotations

import queue
import threading
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.frames import Outcome, closing_rows, frame_rows
from pipelines.recipe import Recipe
from pipelines.sources import RowReader, media_source
from vfm_ops.errors import MediaError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.limits import Limits
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

    Decoding happens in `processes` killable children; views, quality, hashes and JPEGs are made there, while pixels are hot.
    """

    def __init__(self, recipe: Recipe, views: dict[str, View], processes: int) -> None:
        self.recipe, self.views, self.processes = recipe, views, processes
        d = recipe.decode
        limits = Limits(
            max_pixels=d.max_pixels, max_bytes=d.max_bytes, max_duration_s=d.max_duration_s, deadline_s=d.deadline_s
        )
        settings = DecodeSettings(
            views=views,
            decoder=d.decoder,
            jpeg=recipe.jpeg.store,
            jpeg_quality=recipe.jpeg.quality,
            jpeg_max_side=recipe.jpeg.max_side,
            quality=recipe.quality.measure,
            phash=recipe.phash,
            limits=limits,
        )
        self.sandbox = Sandbox(settings, processes)
        s = recipe.sampling
        self.sampling = Sampling(s.mode, s.fps, s.every_n, s.per_shot, s.max_frames)

    def __call__(self, assets: pa.Table) -> Iterator[pa.Table]:
        """Yields the stills first, batched together, then each video on its own, as many at once as there are decoders."""
        rows = assets.to_pylist()
        stills = [a for a in rows if a["media_type"] == "image"]
        yield from self._stills(stills)
        videos = [a for a in rows if a["media_type"] != "image"]
        yield from interleave([partial(self._video, a) for a in videos], self.processes)

    def _stills(self, assets: list[dict[str, Any]]) -> Iterator[pa.Table]:
        outcomes = [Outcome.of(a, self.recipe.hash) for a in assets]
        decoded = zip(outcomes, self._decode_stills(assets))
        while chunk := list(islice(decoded, ROWS)):
            good = []
            for outcome, frame in chunk:
                if isinstance(frame, MediaError):
                    outcome.fail("decode", frame.kind, str(frame))
                else:
                    outcome.probe = {"width": frame.width, "height": frame.height}
                    if self._keep(frame, outcome):
                        good.append((frame, outcome))
            yield frame_rows(
                [f for f, _ in good], [None] * len(good), [o for _, o in good], self.views, self.recipe.jpeg.max_side
            )
            yield closing_rows([o for o, _ in chunk], self.views)

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
        outcome = Outcome.of(asset, self.recipe.hash)
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
        if self.recipe.shots.detector == "none":
            frames = self.sandbox.frames(source, self._wanted(probe, []), probe)
        else:
            wanted = None if self.sampling.needs_shots else self._wanted(probe, [])
            one_pass = wanted is not None and len(wanted) <= HELD_FRAMES
            shots, held, damage = self._detect(source, probe, wanted if one_pass else None, outcome)
            frames = held if one_pass else self.sandbox.frames(source, self._wanted(probe, shots), probe)
        still = StillShots(shots, self.recipe.quality.min_motion)
        kept = (f for f in frames if still.keeps(f, outcome) and self._keep(f, outcome))
        while chunk := list(islice(kept, ROWS)):
            ids = [still.shot_id(f.frame_index, outcome.asset_id) for f in chunk]
            yield frame_rows(chunk, ids, [outcome] * len(chunk), self.views, self.recipe.jpeg.max_side)
        if damage:
            raise damage

    def _wanted(self, probe: Probe, shots: list[Shot]) -> np.ndarray:
        return self.sampling.indices(
            probe.pts_s, probe.keyframes, [(s.start_frame, s.end_frame) for s in shots] or None
        )

    def _detect(
        self, source: MediaSource, probe: Probe, wanted: np.ndarray | None, outcome: Outcome
    ) -> tuple[list[Shot], list[Frame], MediaError | None]:
        """Shots from every frame's thumbnail; `wanted` frames are kept from the same pass, when they are few."""
        settings = self.recipe.shots
        shortest = max(1, round(settings.min_length_s * probe.fps))
        detector = shot_detector(settings.detector, threshold=settings.threshold, min_length=shortest)
        held: list[Frame] = []
        damage: list[MediaError] = []

        def thumbnails() -> Iterator[np.ndarray]:
            nothing = np.zeros(0, np.int64)
            try:
                for chunk, frames in self.sandbox.frames_and_thumbnails(
                    source, nothing if wanted is None else wanted, probe
                ):
                    held.extend(frames)
                    if chunk is not None:
                        yield chunk
            except MediaError as e:
                damage.append(e)

        shots = detect_shots(thumbnails(), probe.pts_s, probe.duration_s, detector)
        for n, shot in enumerate(shots):
            outcome.shots.append({"shot_id": shot_id(outcome.asset_id, n), "detector": detector.name, **asdict(shot)})
        return shots, held, damage[0] if damage else None

    def _keep(self, frame: Any, outcome: Outcome) -> bool:
        reason = drop_reason(frame.quality, self.recipe) if frame.quality else None
        if reason:
            outcome.dropped[reason] = outcome.dropped.get(reason, 0) + 1
            return False
        outcome.frames += 1
        return True


def drop_reason(quality: dict[str, float], recipe: Recipe) -> str | None:
    """Why a filter of the recipe drops a frame, or None: the first bound that it breaks, with the bound."""
    q = recipe.quality
    for name, low, high in (
        ("sharpness", q.min_sharpness, None),
        ("luminance", q.min_luminance, q.max_luminance),
        ("contrast", q.min_contrast, None),
        ("entropy", q.min_entropy, None),
    ):
        if low is not None and quality[name] < low:
            return f"{name} below {low:g}"
        if high is not None and quality[name] > high:
            return f"{name} above {high:g}"
    return None


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
