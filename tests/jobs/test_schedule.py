"""A schedule on a real, token-protected Ray cluster: it fires, the cluster curates, the scheduler sees it end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jobs.scheduler import Schedule, ScheduleStore
from pipelines.curation import selections
from tests.cluster.nodes import ROOT
from tests.cluster.test_jobs import cluster  # noqa: F401 - a fixture
from tests.pipelines.curation.conftest import LakeBuilder, kinds, picture


@pytest.fixture
def lake(tmp_path):
    builder = LakeBuilder(tmp_path / "lake")
    x, _ = kinds([30, 10], seed=1)
    builder.stills([picture(i) for i in range(40)], list(x))
    return builder.lake


def test_a_due_schedule_is_curated_by_the_cluster_once_and_its_end_is_noted(cluster, lake, tmp_path):  # noqa: F811
    store = ScheduleStore(tmp_path / "s.sqlite")
    recipe = "sample: {target: 10}\nseed: 5\n"
    # Due every hour, added two hours ago: two times were missed, one run is made up for.
    store.add(
        Schedule("nightly", "0 * * * *", "UTC", lake.root, "nightly", recipe, cluster.dashboard), time.time() - 7200
    )
    command = [sys.executable, "-m", "jobs.schedule", "run", "--state", str(store.path)]
    scheduler = subprocess.Popen(
        command, env=cluster.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = []
    try:
        for line in scheduler.stdout:
            said.append(line)
            if "is succeeded" in line or "is failed" in line or "refused" in line:
                break
    finally:
        scheduler.terminate()
        scheduler.wait(60)
    assert "is succeeded" in said[-1], [said, [r.message for r in store.runs()]]
    assert [r.status for r in store.runs()] == ["SUCCEEDED"]
    manifest = selections.load_manifest(lake, "nightly")
    assert (manifest.kept, manifest.seed) == (10, 5)
