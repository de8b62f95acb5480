"""The decode op: assets in, frames out, then one closing row for each asset. It never raises for a bad asset."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.frames import Outcome, frame_rows
from pipelines.recipe import Recipe
from pipelines.sources import media_source
from vfm_ops.errors import MediaError
from vfm_ops.media import DecodeSettings, Limits, Sandbox, Shot, detect_shots, sample_frames
from vfm_ops.media.view import View

ROWS = 32  # frames in one working table


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

    def __call__(self, assets: pa.Table) -> Iterator[pa.Table]:
        """Yields the stills first, batched together, then each video on its own, as many at once as there are decoders."""
        rows = assets.to_pylist()
        stills = [a for a in rows if a["media_type"] == "image"]
        yield from self._stills(stills)
        videos = [a for a in rows if a["media_type"] != "image"]
        yield from interleave([lambda a=a: self._video(a) for a in videos], self.processes)

    def _stills(self, assets: list[dict[str, Any]]) -> Iterator[pa.Table]:
        outcomes = [Outcome.of(a, self.recipe.hash) for a in assets]
        decoded = zip(outcomes, self.sandbox.images([media_source(a) for a in assets]))
        while chunk := list(islice(decoded, ROWS)):
            good = []
            for outcome, frame in chunk:
                if isinstance(frame, MediaError):
                    outcome.fail("decode", frame.kind, str(frame))
                else:
                    outcome.probe = {"width": frame.width, "height": frame.height}
                    if self._keep(frame, outcome):
                        good.append((frame, outcome))
            yield frame_rows([f for f, _ in good], [None] * len(good), [o for _, o in good], self.views)
            yield pa.concat_tables([o.closing_row(self.views) for o, _ in chunk])

    def _video(self, asset: dict[str, Any]) -> Iterator[pa.Table]:
        outcome = Outcome.of(asset, self.recipe.hash)
        try:
            yield from self._video_frames(asset, outcome)
        except MediaError as e:
            outcome.fail("decode", e.kind, str(e))
        except Exception as e:
            outcome.fail("decode", type(e).__name__, str(e), traceback.format_exc())
        yield outcome.closing_row(self.views)

    def _video_frames(self, asset: dict[str, Any], outcome: Outcome) -> Iterator[pa.Table]:
        source = media_source(asset)
        probe = self.sandbox.probe(source)
        if probe.is_image:  # the name did not tell
            frame = self.sandbox.image(source)
            outcome.probe = {"width": frame.width, "height": frame.height}
            if self._keep(frame, outcome):
                yield frame_rows([frame], [None], [outcome], self.views)
            return
        outcome.probe = probe.as_dict()
        shots = self._shots(source, probe, outcome)
        wanted = sample_frames(self.recipe.sampling, probe, shots)
        frames = (f for f in self.sandbox.frames(source, probe, wanted) if self._keep(f, outcome))
        shot_of = _shot_lookup(shots, asset["asset_id"])
        while chunk := list(islice(frames, ROWS)):
            yield frame_rows(chunk, [shot_of(f.frame_index) for f in chunk], [outcome] * len(chunk), self.views)

    def _shots(self, source: Any, probe: Any, outcome: Outcome) -> list[Shot]:
        if self.recipe.shots.detector == "none":
            return []
        shots = detect_shots(self.recipe.shots, self.sandbox.thumbnails(source, probe), probe)
        for n, shot in enumerate(shots):
            outcome.shots.append({"shot_id": _shot_id(outcome.asset_id, n), **shot.as_dict()})
        floor = self.recipe.quality.min_motion
        return [s for s in shots if floor is None or s.motion >= floor]

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


def _shot_id(asset_id: str, n: int) -> str:
    return f"{asset_id}:s{n}"


def _shot_lookup(shots: list[Shot], asset_id: str) -> Callable[[int], str | None]:
    starts = [s.start_frame for s in shots]

    def find(frame_index: int) -> str | None:
        from bisect import bisect_right

        return _shot_id(asset_id, bisect_right(starts, frame_index) - 1) if starts else None

    return find
