import os
import subprocess
import sys
import threading

import pytest

from vfm_ops.scheduling import TURN_MS, take_long_turns

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the kernel has no batch scheduling")


def in_thread(work):
    """What `work` returns in a thread of its own: a policy stays with the thread that took it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_a_process_inherits_the_long_turns_of_the_thread_that_starts_it():
    def work():
        take_long_turns()
        code = "import os; print(os.sched_getscheduler(0)); print(open('/proc/self/sched').read())"
        return os.sched_getscheduler(0), subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    policy, child = in_thread(work)
    assert policy == os.SCHED_BATCH
    assert child.stdout.splitlines()[0] == str(os.SCHED_BATCH)
    slices = [line.split(":")[1] for line in child.stdout.splitlines() if line.startswith("se.slice")]
    if slices:  # Linux 6.12 and newer
        assert int(slices[0]) == TURN_MS * 1e6
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # only that thread


def test_a_lowered_priority_is_kept():
    code = (
        "import os; from vfm_ops.scheduling import take_long_turns\n"
        "os.nice(7); take_long_turns(); print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", str(os.SCHED_BATCH)]


def test_a_system_without_batch_scheduling_is_left_alone(monkeypatch):
    monkeypatch.delattr(os, "SCHED_BATCH")
    in_thread(take_long_turns)


def test_a_container_that_forbids_it_is_left_alone(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    assert in_thread(lambda: (take_long_turns(), os.sched_getscheduler(0))[1]) == os.SCHED_OTHER
