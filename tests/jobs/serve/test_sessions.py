"""Sessions expire, are bounded, and let what they hold go."""

from __future__ import annotations

import gc
import weakref

import pytest

from jobs.serve.problems import Problem
from jobs.serve.sessions import Sessions, checked_session_id, new_session_id


class Held:
    """Stands for an encoded image."""


def test_abandoned_sessions_free_what_they_hold():
    now = [0.0]
    sessions = Sessions(1000, 60.0, clock=lambda: now[0])
    held = [Held() for _ in range(1000)]
    alive = [weakref.ref(h) for h in held]
    for i, value in enumerate(held):
        sessions.add(str(i), value)
    del held, value
    now[0] = 59.9
    assert sessions.expire() == 0
    now[0] = 60.0
    assert sessions.expire() == 1000
    gc.collect()
    assert not any(ref() for ref in alive)


def test_use_prolongs_a_session_and_disuse_ends_it():
    now, closed = [0.0], []
    sessions = Sessions(2, 10.0, closed.append, lambda: now[0])
    sessions.add("a", "A")
    sessions.add("b", "B")
    now[0] = 9.0
    assert sessions.get("a") == "A"
    now[0] = 12.0
    assert sessions.get("a") == "A"
    with pytest.raises(Problem) as gone:
        sessions.get("b")
    assert (gone.value.status, closed) == (404, ["B"])


def test_one_too_many_is_told_when_to_come_back():
    now = [0.0]
    sessions = Sessions(1, 10.0, clock=lambda: now[0])
    sessions.add("a", "A")
    now[0] = 4.0
    with pytest.raises(Problem) as full:
        sessions.add("b", "B")
    assert (full.value.status, full.value.retry_after_s) == (429, 6.0)
    assert sessions.remove("a")
    sessions.add("b", "B")


def test_ids_are_unguessable_and_nothing_else_passes():
    ids = {new_session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(checked_session_id(i) == i for i in ids)
    for bad in ("", "../x", "a" * 23, "a" * 21 + "/"):
        with pytest.raises(Problem):
            checked_session_id(bad)


def test_a_prompt_by_time_is_on_the_frame_of_that_time():
    """A number made of a rate would be a frame off wherever the rate varies."""
    import asyncio
    from types import SimpleNamespace

    import numpy as np

    from jobs.serve.models.tracking import Following, Tracking

    times = np.array([0.0, 0.017, 0.131, 0.148, 0.265])
    probe = SimpleNamespace(pts_s=times)
    asked = []

    class Asked(Following):
        def prompt(self, index, prompt):
            asked.append(index)

        def standing(self):
            return {}

    async def ask(prompt):
        tracking = object.__new__(Tracking)
        tracking._sessions, tracking._model_lock = Sessions(1, 60), asyncio.Lock()
        tracking._sessions.add("a", Asked(SimpleNamespace(probe=probe), None))
        return (await tracking.prompt("a", prompt))["frame_index"]

    for index, time in enumerate(times):
        assert asyncio.run(ask({"frame_index": None, "pts_s": float(time) + 0.003})) == index
    assert asyncio.run(ask({"frame_index": 3, "pts_s": None})) == 3
    assert asked == [*range(len(times)), 3]
