"""Tracking replicas: a session holds one video's tracker; frames are decoded as they are tracked, results leave as they come.

Prompts are taken at any time. One on a frame ahead waits for it. One on a frame that was tracked already is a correction:
tracking goes back to that frame and on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.serve.models.loading import LoadedModel
from jobs.serve.models.segmentation import expire_for_ever
from jobs.serve.problems import Problem
from jobs.serve.sessions import HoldsSessions, Sessions
from jobs.serve.settings import ModelChoice, RequestLimits
from vfm_ops.errors import UsageError
from vfm_ops.media.frame import DecodeSettings, Frame
from vfm_ops.media.probe import Probe
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource

if TYPE_CHECKING:
    from vfm_ops.track.frames import FrameMasks
    from vfm_ops.track.prompts import Prompt
    from vfm_ops.track.tracker import Sam2Tracker

# How many frames back a correction still sees the memories that it would have seen at the time.
HISTORY = 64
MOST_OBJECTS = 16


@dataclass
class Following:
    """One session: a video, its tracker, the prompts that wait for their frame, and the frame that comes next."""

    source: MediaSource
    probe: Probe
    tracker: Sam2Tracker
    prompts: dict[int, dict[int, Prompt]] = field(default_factory=dict)
    position: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, frame_index: int, prompt: Prompt) -> None:
        """Takes a prompt; tracking goes back to its frame when it has passed it, or has not begun."""
        if not 0 <= frame_index < self.probe.frame_count:
            raise UsageError(
                f"frame_index is {frame_index}, but the video has frames 0 to {self.probe.frame_count - 1}"
            )
        self.prompts.setdefault(frame_index, {})[prompt.object_id] = prompt
        started = bool(self.tracker.object_ids)
        if frame_index < self.position or not started:
            self.position = min(self.prompts) if not started else frame_index


class Tracking(HoldsSessions):
    """The deployment. A session's requests all reach the replica that holds it (hashed by the session's id)."""

    def __init__(self, choice: dict[str, Any], limits: dict[str, Any]) -> None:
        from vfm_ops.track.load import load_network

        chosen, limit = ModelChoice(**choice), RequestLimits(**limits)
        dtype = {"auto": "auto", "bf16": "bfloat16"}.get(chosen.precision, "float32")
        self._network = LoadedModel(
            lambda: load_network(chosen.spec, device=chosen.device, dtype=dtype),  # type: ignore[arg-type]
            chosen.is_eager,
        )
        settings = DecodeSettings(jpeg=False, pixels=True, limits=limit.media())
        self._sandbox = Sandbox(settings)
        self._sessions: Sessions[Following] = Sessions(limit.sessions, limit.session_s)
        self._model_lock = asyncio.Lock()
        self._expiry = asyncio.get_running_loop().create_task(expire_for_ever(self._sessions))

    async def open(self, session: str, source: tuple[Any, ...]) -> dict[str, Any]:
        """Probes a video (`MediaSource.to_tuple`) and opens a session on it. MediaError; Problem 429."""
        from vfm_ops.track.memory_bank import BankPolicy
        from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

        network = await self._network.get()
        self._sessions.reserve()
        video = MediaSource(*source)
        probe = await asyncio.to_thread(self._sandbox.probe, video)
        settings = TrackerSettings(bank=BankPolicy(history=HISTORY), max_objects=MOST_OBJECTS)
        self._sessions.add(session, Following(video, probe, Sam2Tracker(network, settings)))
        return {
            "width": probe.width,
            "height": probe.height,
            "frames": probe.frame_count,
            "duration_s": probe.duration_s,
            "fps": probe.fps,
            "expires_s": self._sessions.expires_s,
        }

    async def prompt(
        self, session: str, frame_index: int | None, object_id: int, prompt: dict[str, Any]
    ) -> dict[str, Any]:
        """Takes a prompt; without `frame_index` on the frame nearest to its `pts_s`. Returns that frame, and the one from which
        tracking goes on. UsageError; Problem 404."""
        from vfm_ops.track.prompts import Prompt, checked_box, checked_points

        following = self._sessions.get(session)
        points, labels, box = (prompt.get(name) for name in ("points", "labels", "box"))
        made = Prompt(object_id, points=points, labels=labels, box=box)
        # Checked now, against the video's size: a stream must not fail on it later.
        size = following.probe.height, following.probe.width
        if points is not None:
            checked_points(made, "the prompt", *size)
        if box is not None:
            checked_box(np.asarray(box, np.float32), "the prompt", *size)
        if frame_index is None:
            # By the file's own clock: a rate would be a frame off wherever it varies.
            frame_index = int(np.abs(following.probe.pts_s - prompt["pts_s"]).argmin())
        following.add(frame_index, made)
        return {
            "frame_index": frame_index,
            "next_frame": following.position,
            "objects": len({o for p in following.prompts.values() for o in p}),
        }

    async def stream(self, session: str, frames: int) -> AsyncIterator[dict[str, Any]]:
        """Tracks on from where the session is, at most `frames` frames; one dict a frame. UsageError before any prompt;
        Problem 404, and 409 while another stream of the session runs."""
        following = self._sessions.get(session)
        if not following.prompts:
            raise UsageError("nothing is to be tracked yet: post a prompt to the session first")
        if following.lock.locked():
            raise Problem(409, "already streaming", "Another request streams this session: end that one first.")
        async with following.lock:
            left = frames
            while left > 0 and following.position < following.probe.frame_count:
                async for result in self._run(following, following.position, left):
                    self._sessions.get(session)
                    left -= 1
                    yield result

    async def _run(self, following: Following, start: int, most: int) -> AsyncIterator[dict[str, Any]]:
        """One pass forward; ends early when a prompt set the position elsewhere."""
        stop = min(start + most, following.probe.frame_count)
        decoded = self._sandbox.frames(following.source, np.arange(start, stop), following.probe)
        times = following.probe.pts_s
        try:
            for index in range(start, stop):
                frame = await asyncio.to_thread(_next, decoded)
                if frame is None:
                    following.position = following.probe.frame_count  # the file ends before its header says
                    return
                if following.position != index:
                    return
                prompts = list(following.prompts.get(index, {}).values())
                if not prompts and not following.tracker.object_ids:
                    following.position = min(f for f in following.prompts if f > index)
                    return
                following.position = index + 1
                async with self._model_lock:
                    yield await asyncio.to_thread(_track, following.tracker, frame, index, float(times[index]), prompts)
        finally:
            await asyncio.to_thread(decoded.close)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        if hasattr(self, "_sandbox"):
            self._sandbox.close()


def _next(frames: Iterator[Frame]) -> Frame | None:
    return next(frames, None)


def _track(tracker: Sam2Tracker, frame: Frame, index: int, pts_s: float, prompts: list[Prompt]) -> dict[str, Any]:
    found = tracker.track(np.asarray(frame.pixels), frame_index=index, prompts=prompts)
    return {"frame_index": index, "pts_s": pts_s, "objects": _objects(found)}


def _objects(found: FrameMasks) -> list[dict[str, Any]]:
    from vfm_ops.track.masks import encode_rle, mask_box

    rows = zip(found.object_ids, found.masks(), found.scores.tolist(), found.visible.tolist())
    return [
        {
            "object_id": object_id,
            "visible": bool(visible),
            "score": float(score),
            "mask": encode_rle(mask),
            "box": [float(v) for v in mask_box(mask)],
        }
        for object_id, mask, score, visible in rows
    ]
