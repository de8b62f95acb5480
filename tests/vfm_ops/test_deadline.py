"""If these fail, an op that hangs holds a whole run, or its exception comes up in code that did nothing wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vfm_ops import op
from vfm_ops.deadline import DeadlineExceeded, deadline


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_body_in_time_is_left_alone():
    started = time.monotonic()
    with deadline(0.2, "it"):
        pass
    spin(0.4)
    with deadline(None, "it"):
        spin(0.05)
    assert time.monotonic() - started >= 0.45, "it ran to its end"


def test_a_body_that_takes_too_long_is_interrupted_and_nothing_after_it():
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no answer after 0\.2 s"), deadline(0.2, "it"):
        spin(30)
    assert time.monotonic() - started < 5
    spin(0.3)


def test_an_exception_that_comes_as_the_body_ends_comes_up_nowhere_else():
    """The exception is sent around the moment at which the body is done: it is raised by `deadline` or not at all."""
    late, turns = 0, 0
    while turns < 60 or (not late and turns < 600):  # a busy machine wakes the watch later
        said = []
        try:
            with deadline(0.01, "it"):
                until = time.monotonic() + 0.009 + turns * 3e-4
                while time.monotonic() < until:
                    pass
        except DeadlineExceeded as error:
            said.append(str(error))
        assert said in ([], ["no answer after 0.01 s"])
        late, turns = late + len(said), turns + 1
    spin(0.2)
    assert late, "none was late: the moment was missed"
    for watch in [t for t in threading.enumerate() if t.name == "deadline"]:
        watch.join(5)
        assert not watch.is_alive()


def test_a_body_that_swallows_the_exception_is_in_time():
    started = time.monotonic()
    with deadline(0.05, "it"), contextlib.suppress(DeadlineExceeded):
        spin(5)
    assert time.monotonic() - started < 5, "it came"
    spin(0.1)


@pytest.mark.parametrize("seconds", [5, 0.05], ids=["in time", "late"])
def test_a_tracer_works_after_it(seconds):
    """A debugger, or coverage: CPython 3.11 spins in the next call where an exception was announced and taken back."""
    code = f"""
import contextlib, sys, time
from vfm_ops.deadline import DeadlineExceeded, deadline

with contextlib.suppress(DeadlineExceeded), deadline({seconds}, "it"):
    for _ in range(20):
        time.sleep(0.01)
called = []
sys.settrace(lambda frame, event, arg: called.append(frame.f_code.co_name))

def traced():
    pass

traced()
sys.settrace(None)
print(called)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "traced" in done.stdout


def test_an_error_of_the_body_stays_what_it_is():
    with pytest.raises(ValueError, match="own"), deadline(5, "it"):
        raise ValueError("own")


def test_a_call_that_never_returns_ends_the_process_with_a_sentence():
    # Deaf to the exception: on a busy machine it may come before the sleep.
    code = """
import time
import vfm_ops.deadline as d

d.GRACE_S = 0.2
with d.deadline(0.2, "op slow"):
    while True:
        try:
            time.sleep(1000)
        except d.DeadlineExceeded:
            pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "error: op slow hangs in a call that can't be interrupted" in done.stderr


def test_a_picture_at_which_an_op_hangs_costs_itself():
    class Slow(op.Op):
        name = "slow"
        deadline_s = 0.3

        def run(self, images):
            for image in images:
                if image.max() == 0:
                    spin(30)
            return [True] * len(images)

    result = Slow().apply([np.full((4, 4, 3), v, np.uint8) for v in (9, 0, 9)])
    assert result.errors == [None, "op slow: DeadlineExceeded: no answer after 0.3 s", None]
