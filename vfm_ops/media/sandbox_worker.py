"""The decoder process: `python -m vfm_ops.media.sandbox_worker`. It may hang or crash; whoever started it survives that.

Requests come over stdin as (id, slab, slab size, offset, length): JSON that lies in a slab. Replies go out over the
original stdout. The control page shows what is in progress: [progress counter, item of the request, request id].
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from vfm_ops.errors import VfmError
from vfm_ops.media.decode import PyAVDecoder, open_decoder
from vfm_ops.media.frame import DecodeSettings, image_frame, make_frame
from vfm_ops.media.plan import plan_decode
from vfm_ops.media.probe import Probe, probe_video
from vfm_ops.media.sandbox_protocol import (
    ITEM,
    PROGRESS,
    REPLY,
    REQUEST,
    REQUEST_ID,
    frame_to_list,
    probe_from_dict,
)
from vfm_ops.media.shots import wide_size
from vfm_ops.media.slab import Slab, SlabWriter, loads
from vfm_ops.media.source import MediaSource

# A reply is sent as soon as one of these is reached: few messages, flat memory, and no long wait for the first frame.
_REPLY_BYTES, _REPLY_FRAMES, _REPLY_SECONDS, _REPLY_THUMBNAILS = 8 << 20, 32, 0.25, 256


class Worker:
    """Answers requests one by one; holds at most one open video."""

    def __init__(self, settings: DecodeSettings, control: np.ndarray) -> None:
        self._settings, self._control = settings, control
        self._stream: Iterator[tuple[str, Any]] = iter(())

    def tick(self) -> None:
        """Show that something moves."""
        self._control[PROGRESS] += np.uint64(1)

    def answer(self, request: dict[str, Any], writer: SlabWriter) -> str:
        """JSON reply; its arrays are in the slab."""
        operation: Callable[[dict[str, Any], SlabWriter], str] = getattr(self, f"_{request['op']}")
        return operation(request, writer)

    def _images(self, request: dict[str, Any], writer: SlabWriter) -> str:
        items = []
        for number, source in enumerate(request["sources"]):
            self._control[ITEM] = number
            self.tick()
            try:
                # Dumped at once: pixels go to the slab while they are hot, and only one picture is ever held.
                items.append(writer.dumps(frame_to_list(image_frame(MediaSource(*source), self._settings))))
            except Exception as error:
                items.append(writer.dumps(error_to_dict(error, source[0])))
        return f"[{','.join(items)}]"

    def _probe(self, request: dict[str, Any], writer: SlabWriter) -> str:
        source = MediaSource(*request["source"])
        try:
            return writer.dumps({"probe": vars(probe_video(source, self._settings.limits, self.tick))})
        except Exception as error:
            return writer.dumps(error_to_dict(error, source.uri))

    def _open(self, request: dict[str, Any], writer: SlabWriter) -> str:
        source = MediaSource(*request["source"])
        probe = probe_from_dict(request["probe"]) if request["probe"] else None
        indices = request["indices"]
        # The request lies in a slab that the reply will overwrite.
        indices = None if indices is None else indices.copy()
        self._stream = self._decode(source, probe, indices, request["frames"], request["thumbnails"])
        return writer.dumps({})

    def _next(self, request: dict[str, Any], writer: SlabWriter) -> str:
        """The stream's next frames and thumbnails, until a reply is worth sending."""
        frames: list[str] = []
        thumbnails: list[np.ndarray] = []
        done, error, start = True, None, time.monotonic()
        try:
            for kind, value in self._stream:
                if kind == "frame":
                    frames.append(writer.dumps(frame_to_list(value)))
                else:
                    thumbnails.append(value)
                full = len(frames) >= _REPLY_FRAMES or len(thumbnails) >= _REPLY_THUMBNAILS
                used = writer.used + (len(thumbnails) * thumbnails[0].nbytes if thumbnails else 0)
                if full or used > _REPLY_BYTES or time.monotonic() - start > _REPLY_SECONDS:
                    done = False
                    break
        except Exception as problem:
            error = error_to_dict(problem, "the video")
        stack = np.stack(thumbnails) if thumbnails else None
        rest = writer.dumps({"thumbnails": stack, "done": done, "error": error})
        return f'{{"frames":[{",".join(frames)}],{rest[1:]}'

    def _decode(
        self, source: MediaSource, probe: Probe | None, indices: np.ndarray | None, frames: bool, thumbnails: bool | int
    ) -> Iterator[tuple[str, Any]]:
        """thumbnails: none, small ones (True), or their width."""
        settings, limits = self._settings, self._settings.limits
        if probe is None:
            probe = probe_video(source, limits, self.tick)
        times = probe.pts_s
        if not thumbnails:
            decoder = open_decoder(source, probe, plan_decode(probe, indices), limits, settings.decoder)
            for index, rgb in decoder.frames(self.tick):
                yield "frame", make_frame(rgb, settings, index, float(times[index]))
            return
        wanted = np.ones(probe.frame_count, bool)
        if indices is not None:
            wanted[:] = False
            wanted[indices] = True
        wide = None if thumbnails is True else wide_size(probe.width, probe.height, thumbnails)
        seen = 0
        for picture in PyAVDecoder(source, probe, plan_decode(probe), limits).pictures(self.tick):
            thumbnail = picture.wide_thumbnail(*wide) if wide else picture.thumbnail()
            # The n-th thumbnail is the n-th frame's: where damage left frames out, time stands still.
            for _ in range(picture.index - seen):
                yield "thumbnail", thumbnail
            seen = picture.index + 1
            yield "thumbnail", thumbnail
            if frames and wanted[picture.index]:
                yield "frame", make_frame(picture.rgb(), settings, picture.index, float(times[picture.index]))


def error_to_dict(error: Exception, name: str) -> dict[str, Any]:
    """kind and message; errors that no decoder should raise name their type, so that they can be reported."""
    if isinstance(error, VfmError):
        return {"kind": getattr(error, "kind", "usage"), "message": str(error)}
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        message = f"{name} needs more memory than its decoder may use; shrink it or raise decode.memory_mb."
        return {"kind": "memory", "message": message}
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"kind": "damaged", "message": f"{name} can't be decoded ({reason}); fetch or export it again."}


def die_with_parent(pipe: int) -> None:
    """Be killed by the kernel once the parent's end of `pipe` closes, even while hung inside a decoder.

    PR_SET_PDEATHSIG would not do: it fires when the *thread* that started us ends.
    """
    import fcntl

    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    elif sys.platform == "linux":
        fcntl.fcntl(pipe, 10, signal.SIGKILL)  # F_SETSIG, which Python 3.11 does not name
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_memory(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (megabytes << 20),) * 2)


def _read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, count)
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> None:
    """argv[1]: JSON with `settings` and the inherited descriptors `control`, `slabs`, `parent`."""
    arguments = json.loads(sys.argv[1])
    die_with_parent(arguments["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    settings = DecodeSettings.from_dict(arguments["settings"])
    control = Slab(arguments["control"], 4096).array().view(np.uint64)
    slabs = [Slab(fd, os.fstat(fd).st_size) for fd in arguments["slabs"]]
    cv2.setNumThreads(1)
    requests, replies = os.dup(0), os.dup(1)
    _limit_memory(settings.limits.memory_mb)
    _write_all(replies, REPLY.pack(0, 0, 0, 0))
    # Libraries write warnings about damaged media to these; the pipe is not theirs, and nobody reads them.
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silence, standard)
    worker = Worker(settings, control)
    while header := _read_exactly(requests, REQUEST.size):
        number, which, size, offset, length = REQUEST.unpack(header)
        slab = slabs[which]
        slab.resize(size)
        memory = slab.array()
        control[ITEM], control[REQUEST_ID] = 0, number
        worker.tick()
        request = loads(memory[offset : offset + length].tobytes(), memory)
        # Bytes of the request were copied out; arrays that an operation keeps, it copies.
        writer = SlabWriter(slab)
        text = worker.answer(request, writer).encode()
        worker.tick()
        _write_all(replies, REPLY.pack(number, slab.size, writer.used, len(text)) + text)


if __name__ == "__main__":
    main()
