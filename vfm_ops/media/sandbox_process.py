"""The parent's side of one decoder process: start it, send requests, wait with a deadline, kill it when it hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from typing import Any

import numpy as np

from vfm_ops.errors import VfmError
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox_protocol import ITEM, PROGRESS, REPLY, REQUEST, REQUEST_ID
from vfm_ops.media.slab import Slab, SlabWriter, loads
from vfm_ops.processes import how_it_ended, python_path

SLABS = 4
# Of these, so many may be held by arrays that the caller keeps; further ones are copied out, so that work goes on.
_LEASABLE = 2
_LARGE_SLAB = 32 << 20
_START_SECONDS = 120.0
CRASH = "crash"  # kind of an error: the process ended, whoever ended it


class ProcessDied(Exception):
    """The process hung or crashed. kind: `timeout` or `crash`; request, item: what it was doing; reason: in words."""

    def __init__(self, kind: str, reason: str, request: int, item: int) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.request, self.item = kind, reason, request, item


class _Lease:
    """Keeps a slab from being written again for as long as an array over it is alive (NumPy holds it as `base`)."""

    def __init__(self, slab: Slab, number: int, released: deque[int]) -> None:
        self._memory, self._number, self._released = slab.array(), number, released
        self.__array_interface__ = self._memory.__array_interface__

    def __del__(self) -> None:
        self._released.append(self._number)


class DecoderProcess:
    """One child. Requests are answered in order; each borrows a slab, so at most SLABS are under way."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._deadline_s = settings.limits.deadline_s
        self._control_slab = Slab.create(4096)
        self._control = self._control_slab.array().view(np.uint64)
        self._slabs = [Slab.create() for _ in range(SLABS)]
        self._free, self._leased = deque(range(SLABS)), 0
        self._released: deque[int] = deque()
        self._pending: deque[tuple[int, int]] = deque()
        self._answers: dict[int, Any] = {}
        self._requests, self._ready = 0, False
        self._stderr = Slab.create(0x1000)
        self._spawn(settings)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def _spawn(self, settings: DecodeSettings) -> None:
        child_end, self._parent_pipe = os.pipe()
        slabs = [slab.fd for slab in self._slabs]
        fds = {"control": self._control_slab.fd, "slabs": slabs, "parent": child_end}
        environment = os.environ | {
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OPENCV_LOG_LEVEL": "SILENT",
            # One heap that keeps up to 32 MB for the next picture: giving pages back and faulting them in again after
            # every picture costs more than decoding it.
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
            "MALLOC_TOP_PAD_": str(1 << 20),
        }
        # -P: a file named like a library in the working directory must not be imported.
        command = [sys.executable, "-P", "-m", "vfm_ops.media.sandbox_worker"]
        self._popen = subprocess.Popen(
            [*command, json.dumps(fds | {"settings": settings.to_dict()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr.fd,
            pass_fds=[self._control_slab.fd, *slabs, child_end],
            env=environment,
            bufsize=0,
        )
        os.close(child_end)
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to_child, self._from_child = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._from_child, select.POLLIN)

    def can_submit(self) -> bool:
        """Whether a slab is free."""
        while self._released:
            self._free.append(self._released.popleft())
            self._leased -= 1
        return bool(self._free)

    def submit(self, request: dict[str, Any]) -> int:
        """Send a request (JSON values, arrays, bytes); returns its number. Needs `can_submit`."""
        assert self.can_submit()
        number, which = self._requests + 1, self._free.popleft()
        slab = self._slabs[which]
        if slab.size > _LARGE_SLAB:
            slab.shrink()
        writer = SlabWriter(slab)
        text = np.frombuffer(writer.dumps(request).encode(), np.uint8)
        offset = writer.put(text)
        self._requests = number
        self._pending.append((number, which))
        try:
            os.write(self._to_child, REQUEST.pack(number, which, slab.size, offset, len(text)))
        except BrokenPipeError:
            # It has died; the wait for this answer says how.
            return number
        return number

    def wait(self, number: int) -> Any:
        """The answer to a request. Raises ProcessDied when the process ends, or makes no progress for deadline_s."""
        while number not in self._answers:
            self._receive()
        return self._answers.pop(number)

    def _receive(self) -> None:
        number, size, used, length = REPLY.unpack(self._read(REPLY.size))
        text = self._read(length)
        if number == 0:
            self._ready = True
            return
        expected, which = self._pending.popleft()
        assert expected == number, (expected, number)
        slab = self._slabs[which]
        slab.resize(size)
        self.can_submit()
        if self._leased < _LEASABLE:
            self._leased += 1
            memory = np.asarray(_Lease(slab, which, self._released))
            self._answers[number] = loads(text, memory)
            return
        self._answers[number] = loads(text, slab.array()[:used].copy())
        self._free.append(which)

    def _read(self, count: int) -> bytes:
        parts = []
        seen, since = int(self._control[PROGRESS]), time.monotonic()
        while count:
            if self._poll.poll(min(250.0, self._deadline_s * 250.0)):
                part = os.read(self._from_child, count)
                if not part:
                    raise self._crashed()
                parts.append(part)
                count -= len(part)
                continue
            progress, now = int(self._control[PROGRESS]), time.monotonic()
            if progress != seen:
                seen, since = progress, now
            limit = self._deadline_s if self._ready else _START_SECONDS
            if now - since > limit:
                raise self._timed_out()
        return b"".join(parts)

    def _crashed(self) -> ProcessDied:
        code = self._popen.wait()
        if not self._ready:
            raise VfmError(f"The decoder process can't start: {self._error_output() or f'exit code {code}'}")
        return self._died(CRASH, f"its decoder crashed ({how_it_ended(code)})")

    def _timed_out(self) -> ProcessDied:
        self.kill()
        return self._died("timeout", f"its decoder made no progress for {self._deadline_s:g} s and was stopped")

    def _died(self, kind: str, reason: str) -> ProcessDied:
        self.kill()
        return ProcessDied(kind, reason, int(self._control[REQUEST_ID]), int(self._control[ITEM]))

    def _error_output(self) -> str:
        output = os.pread(self._stderr.fd, 1 << 16, 0).replace(b"\0", b"").decode(errors="replace")
        return output.strip().splitlines()[-1] if output.strip() else ""

    def kill(self) -> None:
        """End the process now and free what it shares; arrays that the caller holds stay valid."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        if self._parent_pipe < 0:
            return
        os.close(self._parent_pipe)
        self._parent_pipe = -1
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()
        for slab in (*self._slabs, self._control_slab, self._stderr):
            slab.close()
