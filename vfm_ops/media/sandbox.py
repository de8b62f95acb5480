"""A pool of killable decoder processes. The process that runs models never decodes: damaged or hostile media can hang or
crash a child, which costs that one item; the child is replaced and its other work is done again.

    Sandbox ──DecoderProcess──pipe + shared slabs──▶ sandbox_worker: read, decode, rotate, views, quality, hash, JPEG
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from vfm_ops.errors import MediaError, UsageError, VfmError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.probe import Probe
from vfm_ops.media.sandbox_process import CRASH, DecoderProcess, ProcessDied
from vfm_ops.media.sandbox_protocol import frame_from_list, probe_from_dict
from vfm_ops.media.source import MediaSource

_BATCH = 16
# How long a thread waits for a child that others hold before an extra one is started for it: streams that are read
# slowly, or never to their end, must not block anyone for good.
_PATIENCE_S = 30.0
_CLOSED = "the decoder pool is closed already."


class _Child:
    """A place in the pool: the process is started when first needed, and again after it has died."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._process: DecoderProcess | None = None
        self._closed = False

    @property
    def process(self) -> DecoderProcess:
        """VfmError once it is closed: a stream that outlives its pool starts none, nor waits for an answer of the old one."""
        if self._closed:
            raise VfmError(_CLOSED)
        if self._process is None:
            self._process = DecoderProcess(self._settings)
        return self._process

    def close(self) -> None:
        """Kill the process for good."""
        self._closed = True
        self.stop()

    def check(self) -> None:
        """Replace a process that ended while it had nothing to do (the system was short of memory): nobody's fault."""
        if self._process is not None and not self._process.is_alive:
            self.stop()

    def ask(self, request: dict[str, Any]) -> Any:
        """One request and its answer, by a fresh process when the old one is found dead or stuck in something else."""
        number = self.process.submit(request)
        try:
            return self.process.wait(number)
        except ProcessDied as death:
            self.stop()
            if death.request == number:
                raise
        return self.process.wait(self.process.submit(request))

    def stop(self) -> None:
        """Kill the process; the next use starts a fresh one."""
        if self._process is not None:
            self._process.kill()
            self._process = None


class _Batch:
    """Sources that travel together, and what has become of each: Frame, MediaError, or None while pending."""

    def __init__(self, sources: list[MediaSource]) -> None:
        self.sources = sources
        self.results: list[Frame | MediaError | None] = [None] * len(sources)
        self.request = 0
        self.unexplained = 0
        self.crashed: set[int] = set()

    @property
    def pending(self) -> list[int]:
        return [i for i, result in enumerate(self.results) if result is None]

    def submit(self, process: DecoderProcess) -> None:
        sources = [self.sources[i].to_tuple() for i in self.pending]
        self.request = process.submit({"op": "images", "sources": sources})

    def blame(self, i: int, death: ProcessDied) -> None:
        """A process died over a source. Somebody may have killed it: a crash is the source's fault at the second time."""
        if death.kind == CRASH and i not in self.crashed:
            self.crashed.add(i)
        else:
            self.results[i] = _death_error(death, self.sources[i])

    def take(self, answer: list[Any]) -> None:
        for i, item in zip(self.pending, answer):
            failed = isinstance(item, dict)
            self.results[i] = MediaError(item["kind"], item["message"]) if failed else frame_from_list(item)


class Sandbox:
    """Decodes in child processes. Thread-safe; close it, or use it as a context manager.

    settings: what to make of every frame. processes: children that work at once; they start when first needed.
    """

    def __init__(self, settings: DecodeSettings, processes: int = 1) -> None:
        if processes < 1:
            raise UsageError(f"a sandbox needs at least one decoder process, not {processes}.")
        self.settings = settings
        self._count = processes
        self._idle = [_Child(settings) for _ in range(processes)]
        self._lent: list[_Child] = []
        self._owners: list[int] = []
        self._changed = threading.Condition()
        self._closed = False

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the children now, so that they import while who needs them does."""
        with self._changed:
            for child in self._idle:
                _ = child.process

    def close(self) -> None:
        """Stop all children. Frames already handed out stay valid."""
        with self._changed:
            self._closed = True
            for child in (*self._idle, *self._lent):
                child.close()
            self._idle.clear()

    @contextmanager
    def _borrow(self, at_most: int = 1) -> Iterator[list[_Child]]:
        """One to `at_most` children for this caller alone."""
        me = threading.get_ident()
        with self._changed:
            if self._closed:
                raise VfmError(_CLOSED)
            deadline = time.monotonic() + _PATIENCE_S
            # A thread that holds children itself (a stream it reads elsewhere) would wait for nobody but itself.
            while not self._idle and me not in self._owners and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            children = [self._idle.pop() for _ in range(min(at_most, len(self._idle)))] or [_Child(self.settings)]
            for child in children:
                child.check()
            self._lent += children
            self._owners.append(me)
        try:
            yield children
        finally:
            with self._changed:
                self._owners.remove(me)
                for child in children:
                    self._lent.remove(child)
                    if self._closed or len(self._idle) >= self._count:
                        child.stop()
                    else:
                        self._idle.append(child)
                self._changed.notify_all()

    def image(self, source: MediaSource) -> Frame:
        """Decode one still. Raises MediaError."""
        result = next(iter(self.images([source])))
        if isinstance(result, MediaError):
            raise result
        return result

    def images(self, sources: Iterable[MediaSource]) -> Iterator[Frame | MediaError]:
        """Decode stills, in order: a Frame or the MediaError of each. Sources are read as they are needed, a few batches
        ahead for every child, so `sources` may be endless.
        """
        with self._borrow(self._count) as children:
            flow = _ImageFlow(children, iter(sources), self.settings.limits.deadline_s)
            yield from flow

    def probe(self, source: MediaSource) -> Probe:
        """A video's timeline (see `probe_video`). Raises MediaError."""
        try:
            answer = self._probe(source)
        except MediaError as e:
            if not _has_crashed(e):
                raise
            answer = self._probe(source)
        if "kind" in answer:
            raise MediaError(answer["kind"], answer["message"])
        return probe_from_dict(answer["probe"])

    def _probe(self, source: MediaSource) -> dict[str, Any]:
        with self._borrow() as (child,), _no_crash(child, source):
            answer: dict[str, Any] = child.ask({"op": "probe", "source": source.to_tuple()})
        return answer

    def thumbnails(
        self, source: MediaSource, probe: Probe | None = None, width: int | None = None
    ) -> Iterator[np.ndarray]:
        """Thumbnails of every frame, in chunks: uint8 (n, 27, 48, 3), or as wide as a detector's `thumbnail_width`.

        Raises MediaError after those that damage did not reach; frames that it did reach have the thumbnail of the next.
        """
        for chunk, _ in self._stream(source, probe, None, frames=False, thumbnails=width or True):
            if chunk is not None:
                yield chunk

    def frames(
        self, source: MediaSource, indices: np.ndarray | None = None, probe: Probe | None = None
    ) -> Iterator[Frame]:
        """The frames `indices` of a video (None: all), ascending. probe: saves probing again.

        Raises MediaError after the frames that could be salvaged.
        """
        for _, frames in self._stream(source, probe, indices, frames=True, thumbnails=False):
            yield from frames

    def frames_and_thumbnails(
        self,
        source: MediaSource,
        indices: np.ndarray | None = None,
        probe: Probe | None = None,
        width: int | None = None,
    ) -> Iterator[tuple[np.ndarray | None, list[Frame]]]:
        """Both in one pass over the whole video, where sampling does not wait for the shots: chunks of (thumbnails of the
        next n frames or None, the wanted ones among them). width: see `thumbnails`.
        """
        return self._stream(source, probe, indices, frames=True, thumbnails=width or True)

    def _stream(
        self, source: MediaSource, probe: Probe | None, indices: np.ndarray | None, frames: bool, thumbnails: bool | int
    ) -> Iterator[tuple[np.ndarray | None, list[Frame]]]:
        """Chunks of a video. A process that crashes may have been killed: another one goes on where it was, once."""
        chunks, thumbs, whole = self._chunks(source, probe, indices, frames, thumbnails), 0, 0
        try:
            for thumbnail, frame in chunks:
                thumbs, whole = thumbs + (0 if thumbnail is None else len(thumbnail)), whole + len(frame)
                yield thumbnail, frame
            return
        except MediaError as e:
            if not _has_crashed(e):
                raise
        for thumbnail, frame in self._chunks(source, probe, indices, frames, thumbnails):
            known = 0 if thumbnail is None else len(thumbnail)
            late = None if thumbnail is None or known <= thumbs else thumbnail[thumbs:]
            rest = frame[whole:]
            thumbs, whole = max(0, thumbs - known), max(0, whole - len(frame))
            if late is not None or rest:
                yield late, rest

    def _chunks(
        self, source: MediaSource, probe: Probe | None, indices: np.ndarray | None, frames: bool, thumbnails: bool | int
    ) -> Iterator[tuple[np.ndarray | None, list[Frame]]]:
        request = {
            "op": "open",
            "source": source.to_tuple(),
            "probe": None if probe is None else vars(probe),
            "indices": None if indices is None else np.asarray(indices, np.int64),
            "frames": frames,
            "thumbnails": thumbnails,
        }
        with self._borrow() as (child,), _no_crash(child, source):
            child.ask(request)
            under_way = deque([child.process.submit({"op": "next"})])
            try:
                while under_way:
                    # The next reply is prepared while the caller works on this one.
                    if len(under_way) < 2 and child.process.can_submit():
                        under_way.append(child.process.submit({"op": "next"}))
                    answer = child.process.wait(under_way[0])
                    under_way.popleft()
                    yield answer["thumbnails"], [frame_from_list(item) for item in answer["frames"]]
                    if answer["error"]:
                        raise MediaError(answer["error"]["kind"], answer["error"]["message"])
                    if answer["done"]:
                        return
                    if not under_way:
                        under_way.append(child.process.submit({"op": "next"}))
            finally:
                _settle(child, under_way)


class _ImageFlow:
    """Keeps every borrowed child busy with batches and gives results in the order of the sources."""

    def __init__(self, children: list[_Child], sources: Iterator[MediaSource], deadline_s: float) -> None:
        self._children, self._sources, self._deadline_s = children, sources, deadline_s
        self._queues: list[deque[_Batch]] = [deque() for _ in children]
        self._order: deque[tuple[int, _Batch]] = deque()
        self._turn, self._exhausted = 0, False

    def __iter__(self) -> Iterator[Frame | MediaError]:
        try:
            while True:
                self._fill()
                if not self._order:
                    return
                which, batch = self._order[0]
                while batch.pending:
                    self._advance(which)
                self._order.popleft()
                yield from (result for result in batch.results if result is not None)
        finally:
            for child, queue in zip(self._children, self._queues):
                _settle(child, [batch.request for batch in queue])

    def _fill(self) -> None:
        """Send batches, child by child, while there are sources and free slabs."""
        stuck = 0
        while not self._exhausted and stuck < len(self._children):
            which = self._turn
            self._turn = (self._turn + 1) % len(self._children)
            if not self._children[which].process.can_submit():
                stuck += 1
                continue
            stuck = 0
            sources = list(islice(self._sources, _BATCH))
            if not sources:
                self._exhausted = True
                return
            batch = _Batch(sources)
            batch.submit(self._children[which].process)
            self._queues[which].append(batch)
            self._order.append((which, batch))

    def _advance(self, which: int) -> None:
        """Take the child's next answer; replace the child when it has died, and do its unfinished work again."""
        queue, child = self._queues[which], self._children[which]
        try:
            queue[0].take(child.process.wait(queue[0].request))
            queue.popleft()
        except ProcessDied as death:
            child.stop()
            if death.request not in [batch.request for batch in queue]:
                self._blame_nobody(queue[0], death)
            for batch in queue:
                if batch.request == death.request and batch.pending:
                    batch.blame(batch.pending[death.item], death)
            while queue and not queue[0].pending:
                queue.popleft()
            for batch in queue:
                if batch.pending:
                    batch.submit(child.process)

    def _blame_nobody(self, batch: _Batch, death: ProcessDied) -> None:
        """The child died between requests: its work is done again, but not for ever."""
        batch.unexplained += 1
        if batch.unexplained > 3:
            i = batch.pending[0]
            batch.results[i] = _death_error(death, batch.sources[i])


def _death_error(death: ProcessDied, source: MediaSource) -> MediaError:
    return MediaError(death.kind, f"{source.name}: {death.reason}; leave it out, or re-encode it and try again.")


def _has_crashed(error: MediaError) -> bool:
    """Whether a process died, of which nobody knows whose fault it was."""
    return error.kind == CRASH and isinstance(error.__cause__, ProcessDied)


@contextmanager
def _no_crash(child: _Child, source: MediaSource) -> Iterator[None]:
    """A dead child becomes this item's MediaError, and is replaced."""
    try:
        yield
    except ProcessDied as death:
        child.stop()
        raise _death_error(death, source) from death


def _settle(child: _Child, requests: Iterable[int]) -> None:
    """Wait for answers that nobody wants any more, so that the child is free; a child that dies on them is replaced."""
    requests = list(requests)
    if not requests:
        return
    try:
        for request in requests:
            child.process.wait(request)
    except (ProcessDied, VfmError, ValueError, OSError):
        child.stop()
