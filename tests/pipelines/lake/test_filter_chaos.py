"""Generated conditions against a real lake, in a process of their own: none ends it, hangs it, fills it, or is a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import chaos_count
from tests.jobs.serve.local import tiny_lake

# Of its own, so that a crash of the planner is a failed test and no end of all tests.
CHILD = "tests.pipelines.lake.filter_child"


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(chaos_count(1, 12)))
def test_no_condition_ends_or_hangs_the_process(tmp_path, seed):
    lake = tiny_lake(tmp_path / "lake", 100, 2)
    argv = [sys.executable, "-m", CHILD, lake.root, str(seed), str(chaos_count(150, 1000))]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=chaos_count(240, 1200))
    assert ran.returncode == 0, ran.stderr[-1000:]
    found = json.loads(ran.stdout)
    assert found["odd"] == []
    assert found["slowest"][0] < 10, found["slowest"]
    assert found["seen"]["answered"] > 0.1 * sum(found["seen"].values())
    assert found["grown_mb"] < 400, found["rss"]
