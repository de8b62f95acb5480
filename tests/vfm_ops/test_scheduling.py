"""Each case runs in a process of its own: a thread that was given batch scheduling keeps it."""

import os
import subprocess
import sys

import pytest

from vfm_ops.scheduling import SLICE_MS

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the kernel has no batch scheduling")

# Whatever was inherited from pytest.
NORMAL = "import os; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
TAKE = "from vfm_ops.scheduling import use_batch_scheduling; use_batch_scheduling()\n"


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", NORMAL + code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_process_inherits_the_long_turns_of_the_thread_that_starts_it():
    child = "import os; print(os.sched_getscheduler(0)); print(open('/proc/self/sched').read())"
    policy, *facts = run(f'{TAKE}import subprocess, sys\nsubprocess.run([sys.executable, "-c", {child!r}], check=True)')
    assert policy == str(os.SCHED_BATCH)
    slices = [line.split(":")[1] for line in facts if line.startswith("se.slice")]
    if slices:  # Linux 6.12 and newer
        assert int(slices[0]) == SLICE_MS * 1e6


def test_threads_that_run_already_are_left_alone():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from vfm_ops.scheduling import use_batch_scheduling\n"
        "ThreadPoolExecutor(1).submit(use_batch_scheduling).result()\n"
        "print(os.sched_getscheduler(0))"
    )
    assert run(code) == [str(os.SCHED_OTHER)]


def test_a_lowered_priority_is_kept():
    assert run(f"os.nice(7)\n{TAKE}print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))") == [
        f"{min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)} {os.SCHED_BATCH}"
    ]


def test_a_system_without_batch_scheduling_is_left_alone():
    assert run(f"del os.SCHED_BATCH\n{TAKE}print(os.sched_getscheduler(0))") == [str(os.SCHED_OTHER)]


def test_a_container_that_forbids_it_is_left_alone():
    forbid = "def forbidden(*_):\n    raise PermissionError(1, 'Operation not permitted')\n"
    code = f"{forbid}os.sched_setscheduler = forbidden\n{TAKE}print(os.sched_getscheduler(0))"
    assert run(code) == [str(os.SCHED_OTHER)]
