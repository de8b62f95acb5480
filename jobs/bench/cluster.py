"""`vfm bench cluster`: several nodes against one node that holds the same cores, in the same run, on this machine.

Every cluster has a head without CPUs, as in cluster.yaml. Nodes are processes of this machine, so that what is compared is how
work is placed, handed out and committed, and not the network.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from jobs.bench.media import write_jpegs
from jobs.bench.process import EMBED_ONLY
from pipelines.cluster import UNWATCHED

# (nodes, CPUs of each, whether they come only while the job waits for them)
SHAPES = ((1, 1, False), (2, 1, False), (4, 1, False), (2, 2, False), (2, 1, True))
START_S = 3.0  # until late nodes come: the job waits by then
LIMIT_S = 600
IMAGES = 12_000  # half a minute: a late node has a few seconds of start to make up for


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows: cluster, frames/s of it and of one node, ratio, bar. The two are timed in turn; the median of ratios is taken."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        root = Path(folder)
        corpus = root / "images"
        write_jpegs(corpus, 400 if quick else IMAGES)
        for nodes, cpus, late in SHAPES:
            pairs = []
            for turn in range(1 if quick else 3):
                lake = root / f"{nodes}x{cpus}-{late}-{turn}"
                one = _rate(corpus, Path(f"{lake}-one"), 1, nodes * cpus, False)
                pairs.append((_rate(corpus, lake, nodes, cpus, late), one))
            rows.append(
                {
                    "what": f"{nodes} nodes of {cpus} CPUs{', while the job waits' if late else ''}: frames/s",
                    "ours": statistics.median(ours for ours, _ in pairs),
                    "one node": statistics.median(one for _, one in pairs),
                    "ratio": statistics.median(ours / one for ours, one in pairs),
                    "bar": "at least 0.85",
                }
            )
    return rows


def _rate(corpus: Path, lake: Path, nodes: int, cpus: int, late: bool) -> float:
    """Frames/s between the first result and the last, of a run on a cluster in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "jobs.ingest", str(corpus), "--lake", str(lake)], check=True, capture_output=True
    )
    # A raylet in the group of its driver would end that one when it ends.
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"RAY_process_group_cleanup_enabled": "0", "RAY_raylet_start_wait_time_s": "120", **UNWATCHED}
    command = [sys.executable, "-m", "jobs.bench.cluster", str(lake), str(nodes), str(cpus), str(int(late))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{nodes} nodes of {cpus} CPUs: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["rate"])


def run(root: str, nodes: int, cpus: int, late: bool) -> None:
    """Processes a lake on a cluster that is started, and ended, here. Prints its rate, as JSON."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.lake import Lake
    from pipelines.process import process
    from pipelines.process.recipe import load_recipe

    small = {"object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    summaries: list[Any] = []
    recipe = load_recipe(None, EMBED_ONLY[1::2])
    work = threading.Thread(target=lambda: summaries.append(process(Lake.open(root), recipe)))
    if late:
        work.start()
        work.join(START_S)
    for _ in range(nodes):  # by this thread: a node sets signal handlers
        cluster.add_node(num_cpus=cpus, **small)
    if not late:
        work.start()
    work.join()
    print(json.dumps({"rate": summaries[0].steady_rate}), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
