"""What a team loses if a cluster is misread: a job that never starts, says nothing, or leaves most of its nodes idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from pipelines import cluster
from pipelines.cluster import UNWATCHED, NodeShape, explaining, nodes_to_come, place
from pipelines.process.recipe import Resources
from pipelines.sources import ingest
from tests.pipelines.late_nodes import KILLS, RAISES

ROOT = Path(__file__).parents[2]


def nodes(*shapes: tuple[int, int] | tuple[int, int, float]) -> dict[NodeShape, int]:
    """Nodes by shape, from (count, CPUs[, GPUs])."""
    return {NodeShape(cpus, *gpus): count for count, cpus, *gpus in shapes}


@pytest.mark.parametrize(
    ("there", "cpus", "at_once"),
    [
        (nodes((1, 1)), 1, 1),
        (nodes((2, 1)), 1, 2),  # never 2 CPUs of one node
        (nodes((4, 1)), 1, 4),
        (nodes((2, 2)), 2, 2),
        (nodes((4, 4)), 4, 4),  # never 8
        (nodes((2, 6)), 6, 2),
        (nodes((1, 12)), 6, 2),  # 8 would leave 4 idle
        (nodes((32, 32)), 8, 128),
        (nodes((1, 2), (1, 32)), 8, 4),  # a small node among large ones does not make all actors small
        (nodes((1, 0), (3, 16)), 8, 6),  # a head without CPUs
        (nodes((1, 7)), 7, 1),
    ],
)
def test_actors_fit_single_nodes_and_use_them_all(there, cpus, at_once):
    placed = place(Resources(), there, {})
    assert (placed.fused, placed.cpus, placed.at_once) == (True, cpus, at_once)
    assert placed.actors == (1, None)  # whatever comes later is used


def test_with_no_node_yet_actors_fit_those_that_may_come():
    head, workers = nodes((1, 0)), nodes((32, 32), (8, 32, 1.0))
    on_cpu = place(Resources(device="cpu"), head, workers)
    assert (on_cpu.fused, on_cpu.cpus, on_cpu.gpus) == (True, 8, 0)
    on_gpu = place(Resources(), head, workers)  # cards may come, so models wait for them
    assert (on_gpu.fused, on_gpu.cpus, on_gpu.gpus) == (False, 1, 1.0)
    assert (on_gpu.actors, on_gpu.decode_actors) == ((1, None), (1, None))
    nothing_known = place(Resources(), head, {})
    assert (nothing_known.cpus, nothing_known.at_once) == (1, 1)


def test_what_the_recipe_says_is_taken_as_far_as_a_node_allows():
    asked = place(Resources(cpus_per_actor=3, actors=2), nodes((2, 4)), {})
    assert (asked.cpus, asked.actors, asked.at_once) == (3, (2, 2), 2)
    assert place(Resources(cpus_per_actor=16), nodes((2, 4)), {}).cpus == 4
    shared = place(Resources(device="cuda", gpus_per_actor=0.5), nodes((2, 8, 2.0)), {})
    assert (shared.gpus, shared.at_once, shared.decode_at_once) == (0.5, 8, 8)


def test_the_nodes_that_may_come_are_read_from_the_autoscaler(monkeypatch, tmp_path):
    import ray
    from ray._private import state

    groups = [
        SimpleNamespace(resources={"CPU": 0}, max_count=0),
        SimpleNamespace(resources={"CPU": 32}, max_count=16),
        SimpleNamespace(resources={"CPU": 16, "GPU": 1}, max_count=-1),
    ]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=groups))
    assert nodes_to_come() == {NodeShape(32): 16, NodeShape(16, 1.0): sys.maxsize}
    # `ray up` tells the control store nothing; it leaves the cluster file on the head.
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: None)
    monkeypatch.setattr(cluster, "BOOTSTRAP", ROOT / "cluster.yaml")
    assert nodes_to_come() == {NodeShape(32): 32, NodeShape(32, 1.0): 8}
    monkeypatch.setattr(cluster, "BOOTSTRAP", tmp_path / "none.yaml")
    assert not nodes_to_come()


def test_what_cannot_be_scheduled_is_said_in_a_sentence_and_only_then(caplog, monkeypatch):
    monkeypatch.setattr(cluster, "nodes_there", lambda: nodes((1, 0), (2, 1)))
    problems = iter([None, cluster.cannot_schedule(2, 0.0)])
    seen = []

    def problem() -> str | None:
        seen.append(next(problems, None))
        return seen[-1]

    with explaining(problem, after_s=0.01):
        while len(seen) < 4:
            pass
    assert [r.message for r in caplog.records] == [
        "no worker runs yet: it wants 2 CPUs on one node, and the nodes are: 1 with 0 CPUs, 2 with 1 CPUs; add such a node, or "
        "set resources.cpus_per_actor lower"
    ]


def test_a_job_waits_for_its_nodes_says_so_and_one_item_that_kills_workers_costs_itself_alone(tmp_path):
    """Two nodes of one CPU each come while the run waits. An item that ends its worker is not mistaken for one that raises."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate([*(f"{i}.jpg" for i in range(20)), KILLS, RAISES]):
        Image.new("RGB", (32, 24), (10 * i, 0, 0)).save(folder / name)
    ingest([str(folder)], str(tmp_path / "lake"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "120", **UNWATCHED}
    env |= {"RAY_process_group_cleanup_enabled": "0"}  # a raylet in the group of its driver ends that one, too
    script = [sys.executable, "-m", "tests.pipelines.late_nodes", str(tmp_path / "lake")]
    run = subprocess.run(script, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert "it wants 1 CPU on one node, and the nodes are: 1 with 0 CPUs; add such a node" in found["said"][0]
    assert found["done"] == sorted(f"{i}.jpg" for i in range(20))
    assert found["bad"] == {KILLS: "worker_died", RAISES: "RuntimeError"}
    assert any("can't bear" in message for message in found["messages"])
    assert found["violations"] == []
    assert found["in_quarantine"] == 2
    assert (found["cpus"], found["at_once"], found["nodes"]) == (1, 2, {"0": 1, "1": 2})
    # What a Ray of another test, beside this one, makes Ray say is not this run's.
    chatter = [line for line in run.stderr.splitlines() if line.strip() and "previous Ray address" not in line]
    # But for one line of Ray's C++ side, which has no log file in a driver and no level that keeps it quiet.
    assert all("no worker runs yet" in line or "core_worker.cc" in line for line in chatter), chatter
    assert len(run.stdout.splitlines()) == 1  # what raylets say of workers that died would spoil `--json`
