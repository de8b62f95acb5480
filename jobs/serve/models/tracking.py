"""Tracking replicas: a session holds one video's objects; frames are decoded as they are tracked, results leave as they come.

Prompts are answered at once, at any time. One on a frame that was tracked already is a correction: tracking goes back to that
frame, with the objects that changed, and on from there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jobs.serve.models.loading import LoadedModel
from jobs.serve.models.segmentation import expire_for_ever
from jobs.serve.problems import Problem
from jobs.serve.sessions import HoldsSessions, Sessions
from jobs.serve.settings import ModelChoice, RequestLimits
from vfm_ops.errors import UsageError
from vfm_ops.media.source import MediaSource
from vfm_ops.media.video_frames import VideoFrames, frame_sandbox

if TYPE_CHECKING:
    from vfm_ops.track.frames import FrameMasks
    from vfm_ops.track.session import VideoSession

T = TypeVar("T")
# How many frames back a correction still sees the memories that it would have seen at the time.
HISTORY = 64
MOST_OBJECTS = 16
MOST_ANSWERED = 5000  # frames whose answers are held, for the objects that a correction leaves as they are


@dataclass
class Following:
    """One session: a video, what is followed on it, and the latest answer for each object and frame.

    asset_id: of a video of the lake. said: what was said of each object, as a file of prompts has it. forgotten: answers.
    """

    frames: VideoFrames
    session: VideoSession
    asset_id: str | None = None
    said: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    forgotten: int = 0
    answers: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    streaming: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Held by the thread at work, not by the request that waits for it: a client may hang up while the thread goes on.
    turn: threading.Lock = field(default_factory=threading.Lock)

    def call(self, method: Callable[..., T], *arguments: Any) -> T:
        """Calls a method of the session, when no other thread does."""
        with self.turn:
            return method(*arguments)

    def prompt(self, index: int, prompt: dict[str, Any]) -> dict[str, Any]:
        """Takes a prompt (`TrackPrompt`). Returns the object's answer on that frame. UsageError."""
        from vfm_ops.track.masks import checked_rle

        with self.turn:
            session, object_id = self.session, prompt["object_id"]
            try:
                if prompt["mask"] is not None:
                    size = self.frames.probe.height, self.frames.probe.width
                    found = session.add_new_mask(index, object_id, checked_rle(prompt["mask"], size))
                else:
                    shown = (prompt[name] for name in ("points", "labels", "clear_old_points", "box"))
                    found = session.add_new_points_or_box(index, object_id, *shown)
            finally:
                self.frames.stop()
            told = {name: prompt[name] for name in ("points", "labels", "box", "mask") if prompt[name] is not None}
            told |= {"frame_idx": index, "obj_id": object_id}
            told |= {} if prompt["clear_old_points"] else {"clear_old_points": False}
            self.said.setdefault(object_id, []).append(told)
            return self._remember(found)[object_id]

    def decode(self, reverse: bool) -> None:
        """Decodes the frame that is tracked next, which needs no model."""
        with self.turn:
            index = self.session.next_frame(reverse)
            if index is not None and not self.session.tracker.holds(index):
                try:
                    self.frames[index]
                except IndexError:
                    return  # fewer frames than the header says; the session will see

    def advance(self, passing: Iterator[FrameMasks]) -> dict[str, Any] | None:
        """The next frame's result, with the answers that other objects have on it; None when all is tracked."""
        with self.turn:
            found = next(passing, None)
            if found is None:
                return None
            index, answers = found.frame_index, self._remember(found)
            objects = [answers[i] for i in self.session.object_ids if i in answers]
            return {"frame_index": index, "pts_s": float(self.frames.probe.pts_s[index]), "objects": objects}

    def forget(self, object_id: int | None = None) -> None:
        """Forgets an object, or all. UsageError."""
        with self.turn:
            if object_id is None:
                self.session.reset_state()
                self.answers.clear()
                self.said.clear()
                return
            self.session.remove_object(object_id)
            self.said.pop(object_id, None)
            for answers in self.answers.values():
                answers.pop(object_id, None)

    def clear(self, index: int, object_id: int) -> None:
        """Takes the prompts of an object on a frame back. UsageError."""
        with self.turn:
            self.session.clear_all_prompts_in_frame(index, object_id)
            entry = {"clear_all_prompts_in_frame": {"frame_idx": index, "obj_id": object_id}}
            self.said.setdefault(object_id, []).append(entry)

    def objects(self) -> dict[str, Any]:
        """What was answered of the objects that there are, for who stores it. Problem 409 when some of it was forgotten."""
        with self.turn:
            if self.forgotten:
                raise Problem(
                    409, "too long", f"A session holds {MOST_ANSWERED} answered frames, and this one had more: "
                    "track and store the video by vfm track."
                )  # fmt: skip
            known, times = set(self.session.object_ids), self.frames.probe.pts_s
            rows = [
                {"frame_index": index, "pts_s": float(times[index]), **answer}
                for index, answers in self.answers.items()
                for i, answer in answers.items()
                if i in known and answer["visible"] and any(answer["box"])
            ]
            return {"asset_id": self.asset_id, "rows": rows, "said": {i: self.said[i] for i in known}}

    def standing(self) -> dict[str, Any]:
        """How many objects there are, and the frame from which tracking goes on; the video's length when all is tracked."""
        with self.turn:
            ahead = self.session.next_frame()
            next_frame = len(self.frames) if ahead is None else ahead
            return {"next_frame": next_frame, "objects": len(self.session.object_ids)}

    def _remember(self, found: FrameMasks) -> dict[int, dict[str, Any]]:
        answers = self.answers.setdefault(found.frame_index, {})
        answers.update({answer["object_id"]: answer for answer in _objects(found)})
        while len(self.answers) > MOST_ANSWERED:
            del self.answers[next(iter(self.answers))]
            self.forgotten += 1
        return answers


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
        self._sandbox = frame_sandbox(limit.media())
        self._sessions: Sessions[Following] = Sessions(limit.sessions, limit.session_s)
        self._model_lock = asyncio.Lock()
        self._expiry = asyncio.get_running_loop().create_task(expire_for_ever(self._sessions))

    async def open(
        self,
        session: str,
        source: tuple[Any, ...],
        fill_hole_area: int = 0,
        non_overlap_masks: bool = False,
        asset_id: str | None = None,
    ) -> dict[str, Any]:
        """Probes a video (`MediaSource.to_tuple`), maybe an asset's, and opens a session on it. MediaError; Problem 429."""
        from vfm_ops.track.memory_bank import BankPolicy
        from vfm_ops.track.session import VideoSession
        from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

        network = await self._network.get()
        self._sessions.reserve()
        frames = await asyncio.to_thread(VideoFrames, MediaSource(*source), self._sandbox)
        settings = TrackerSettings(
            bank=BankPolicy(history=HISTORY, around_prompts=True),
            max_objects=MOST_OBJECTS,
            fill_hole_area=fill_hole_area,
            non_overlap_masks=non_overlap_masks,
        )
        following = Following(frames, VideoSession(Sam2Tracker(network, settings), frames), asset_id)
        self._sessions.add(session, following)
        probe = frames.probe
        return {
            "width": probe.width,
            "height": probe.height,
            "frames": probe.frame_count,
            "duration_s": probe.duration_s,
            "fps": probe.fps,
            "expires_s": self._sessions.expires_s,
        }

    async def prompt(self, session: str, prompt: dict[str, Any]) -> dict[str, Any]:
        """Takes a prompt (`TrackPrompt`); without `frame_index` on the frame nearest to its `pts_s`. Returns that frame, the
        object's answer on it, and the frame from which tracking goes on. UsageError; Problem 404."""
        following = self._sessions.get(session)
        index = prompt["frame_index"]
        if index is None:
            # By the file's own clock: a rate would be a frame off wherever it varies.
            index = int(np.abs(following.frames.probe.pts_s - prompt["pts_s"]).argmin())
        async with self._model_lock:
            answer = await asyncio.to_thread(following.prompt, index, prompt)
        standing = await asyncio.to_thread(following.standing)
        return {"frame_index": index, "object": answer, **standing}

    async def remove_object(self, session: str, object_id: int) -> dict[str, Any]:
        """Forgets an object. UsageError; Problem 404."""
        following = self._sessions.get(session)
        await asyncio.to_thread(following.forget, object_id)
        return await asyncio.to_thread(following.standing)

    async def clear_all_prompts_in_frame(self, session: str, frame_index: int, object_id: int) -> dict[str, Any]:
        """Takes the prompts of an object on a frame back. UsageError; Problem 404."""
        following = self._sessions.get(session)
        await asyncio.to_thread(following.clear, frame_index, object_id)
        return await asyncio.to_thread(following.standing)

    async def reset_state(self, session: str) -> dict[str, Any]:
        """Forgets all objects. Problem 404."""
        following = self._sessions.get(session)
        await asyncio.to_thread(following.forget)
        return await asyncio.to_thread(following.standing)

    async def objects(self, session: str) -> dict[str, Any]:
        """The asset, rows of all objects on all answered frames, and what was said of each. Problem 404, 409."""
        return await asyncio.to_thread(self._sessions.get(session).objects)

    async def stream(
        self, session: str, frames: int, start_frame_idx: int | None = None, reverse: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Tracks on from where the session is, or from a frame, at most `frames` frames; one dict a frame. UsageError before
        any prompt; Problem 404, and 409 while another stream of the session runs."""
        following = self._sessions.get(session)
        if not following.session.object_ids:
            raise UsageError("nothing is to be tracked yet: post a prompt to the session first")
        if following.streaming.locked():
            raise Problem(409, "already streaming", "Another request streams this session: end that one first.")
        async with following.streaming:
            propagate = following.session.propagate_in_video
            passing = await asyncio.to_thread(following.call, propagate, start_frame_idx, frames - 1, reverse)
            try:
                while True:
                    await asyncio.to_thread(following.decode, reverse)
                    async with self._model_lock:
                        result = await asyncio.to_thread(following.advance, passing)
                    if result is None:
                        return
                    self._sessions.get(session)
                    yield result
            finally:
                await asyncio.to_thread(following.call, following.frames.stop)

    def __del__(self) -> None:
        if hasattr(self, "_sandbox"):
            self._sandbox.close()


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
