"""Run as a process of its own, by test_cluster.py: a lake is processed on a cluster that has no node yet.

Its head has no CPU. When the run has said that it waits, two nodes of one CPU each come. Of the pictures, one kills the worker
that reads it, and one makes it raise. Prints what became of them, as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.process.chain import Chain

KILLS, RAISES = "kills.jpg", "raises.jpg"


def sabotage() -> None:
    """Decoding these items ends the process, or raises."""
    from pipelines.process.decode import DecodeAssets

    decode = DecodeAssets.__call__

    def decoding(self, unit, known=None):
        names = {Path(uri).name for uri in unit["uri"].to_pylist()}
        if KILLS in names:
            os._exit(1)
        if RAISES in names:
            raise RuntimeError("the model met what it can't bear")
        return decode(self, unit, known)

    DecodeAssets.__call__ = decoding


def sabotage_workers() -> None:
    """In every process of Ray, and in the workers that it starts to run an item carefully."""
    from pipelines.process.local import LocalWorkers
    from tests.pipelines.late_nodes import Sabotaged, sabotage

    sabotage()
    init = LocalWorkers.__init__
    LocalWorkers.__init__ = lambda self, actor, *rest: init(self, Sabotaged, *rest)


class Sabotaged(Chain):
    """A chain in which these items do what they do."""

    def __init__(self, *arguments) -> None:
        sabotage()
        super().__init__(*arguments)


def main(root: str) -> None:
    """See the module."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines import cluster as placing
    from pipelines.lake import Lake, verify_lake
    from pipelines.process import graph, process
    from pipelines.process.recipe import Recipe
    from pipelines.settings import validate

    placing.SAY_AFTER_S = 0.5
    graph.DEATHS = 2
    small = {"object_store_memory": 100 << 20}
    waits, said = threading.Event(), []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            waits.set()

    placing.logger.addHandler(Listen())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    hook = {"worker_process_setup_hook": sabotage_workers}
    ray.init(address=cluster.address, runtime_env=hook, log_to_driver=False, logging_level=logging.ERROR)

    lake = Lake.open(root)
    recipe = validate(Recipe, {"shots": {"detector": "none"}, "quality": {"measure": False}, "phash": False}, "test")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(process, lake, recipe)
        run.add_done_callback(lambda _: waits.set())  # an error ends the waiting, too
        waits.wait()
        for _ in range(0 if run.done() else 2):  # by this thread: a node sets signal handlers
            cluster.add_node(num_cpus=1, **small)
        summary = run.result()
    names = {r["asset_id"]: Path(r["uri"]).name for r in lake.read("assets").to_pylist()}
    placed = placing.place(recipe.resources)
    print(
        json.dumps(
            {
                "said": said,
                "done": sorted(names[i] for i in lake.read("ledger")["asset_id"].to_pylist()),
                "bad": {names[r["asset_id"]]: r["error_type"] for r in lake.read("quarantine").to_pylist()},
                "messages": [r["message"] for r in lake.read("quarantine").to_pylist()],
                "violations": verify_lake(lake).violations,
                "in_quarantine": summary.in_quarantine,
                "cpus": placed.cpus,
                "at_once": placed.at_once,
                "nodes": Counter(node.cpus for node in placing.nodes_there().elements()),
            }
        ),
        flush=True,
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
