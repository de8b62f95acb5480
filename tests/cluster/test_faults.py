"""A cluster that breaks in the middle of a job: the rows are those of a calm run, the lake verifies, and the log says
what it was.

Nodes are processes of this machine (`nodes`). `make test` runs one of the faults, `make chaos` each with three seeds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.lake import Lake, verify_lake
from tests.chaos.rows import differences
from tests.cluster.nodes import ROOT, Cluster, Job, can_link, until
from tests.conftest import chaos_count

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
PICTURES = 1000
RECIPE = """shots: {{detector: none}}
ops:
  - quality
  - "tests.cluster.slow_ops:Slow": {{log: "{log}"}}
"""
# A lease is given up after seconds, so that a driver need not be paused for a minute.
LEASE = {"VFM_LEASE_EXPIRES_S": "6", "VFM_HEARTBEAT_S": "1"}
SLOW_S = "0.05"  # a picture


@dataclass
class Corpus:
    """Pictures, a lake that lists them, and one that a calm run has filled."""

    listed: Path
    calm: Lake

    def lake(self, folder: Path) -> Lake:
        """A lake of the pictures, of which none was processed."""
        shutil.copytree(self.listed, folder)
        return Lake.open(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120)).save(
            folder / "in" / f"{i:03d}.jpg"
        )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}

    def vfm(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "jobs.cli", *words], env=env, cwd=ROOT, check=True, capture_output=True)

    listed, calm = folder / "listed", folder / "calm"
    vfm("ingest", str(folder / "in"), "--lake", str(listed))
    shutil.copytree(listed, calm)
    vfm("process", "--lake", str(calm), "--recipe", str(written_recipe(folder)))
    return Corpus(listed, Lake.open(calm))


def written_recipe(folder: Path) -> Path:
    """The recipe, whose op writes down its work in that folder."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(log=folder / "work.log"))
    return path


@dataclass
class Scene:
    """A cluster, a lake, and the job that fills it, in the middle of its work."""

    cluster: Cluster
    lake: Lake
    recipe: Path
    job: Job
    rng: random.Random

    def submit(self, host: str = "") -> Job:
        """The same job, given again."""
        self.job = submitted(self.cluster, self.lake, self.recipe, host)
        return self.job

    def repeated(self) -> int:
        """How many pictures were computed more than once."""
        lines = (self.recipe.parent / "work.log").read_text().splitlines()
        return len(lines) - len({line.split()[0] for line in lines})


def submitted(cluster: Cluster, lake: Lake, recipe: Path, host: str = "") -> Job:
    words = ["--lake", lake.root, "--recipe", str(recipe), "--set", "resources.cpus_per_actor=1"]
    return cluster.submit("-m", "jobs.process", *words, host=host)


# -- faults: each happens while the job is at work, and returns what its log says


def kill_a_node(scene: Scene) -> str:
    """A machine loses power."""
    scene.cluster.nodes[scene.rng.choice(["node1", "node2"])].kill()
    return "is gone"


def kill_the_head(scene: Scene) -> str:
    """The head and all that hangs on it goes; a new one comes, and the job is submitted again."""
    scene.cluster.kill()
    scene.cluster.start_head()
    scene.cluster.add("node1")
    scene.cluster.add("node2")
    scene.submit()
    return ""


def kill_the_driver(scene: Scene) -> str:
    """The job's process is killed, and the job submitted again."""
    driver = scene.job.driver()
    driver.kill()
    assert scene.job.wait() == "FAILED"
    scene.submit()
    return ""


def kill_a_decoder(scene: Scene) -> str:
    """A process that decodes, of one of the actors, is killed."""
    decoders = [p for name in ("node1", "node2") for p in scene.cluster.nodes[name].workers("sandbox_worker")]
    scene.rng.choice(decoders).kill()
    return ""


def kill_an_actor(scene: Scene) -> str:
    """The process of an actor is killed."""
    actors = [p for name in ("node1", "node2") for p in scene.cluster.nodes[name].workers("ray::MapWorker")]
    scene.rng.choice(actors).kill()
    return "a worker died, and another took its place"


def add_a_node(scene: Scene) -> str:
    """A third node comes, and takes work."""
    scene.cluster.add("node3")
    node = scene.cluster.nodes["node3"]
    until(lambda: node.workers("ray::MapWorker"), 60, lambda: scene.job.log)
    return "with 1 CPUs, has come: it is given work"


def drain_a_node(scene: Scene) -> str:
    """A spot machine is told that it will be taken away."""
    name = scene.rng.choice(["node1", "node2"])
    node_id = next(n["node_id"] for n in scene.cluster.alive() if name in n["resources_total"])
    words = ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
    address = f"{scene.cluster.host}:{scene.cluster.port}"
    scene.cluster.ray("drain-node", "--address", address, *words, "--deadline-remaining-seconds", "8")
    return "is gone"


def pause_the_driver(scene: Scene) -> str:
    """The driver stands still for longer than its lease; another run takes the lake meanwhile, and the first one wakes."""
    can_link()  # as root
    driver = scene.job.driver()
    driver.send_signal(signal.SIGSTOP)
    late = scene.job
    try:
        scene.submit(host="elsewhere")  # of a driver on its own machine it would see that it is there
        until(lambda: scene.lake.read("lease")["epoch"].to_pylist()[-1] > 0, 120, lambda: scene.job.log)
    finally:
        driver.send_signal(signal.SIGCONT)
    assert late.wait() == "FAILED"
    assert "was paused or cut off for too long: it stops here" in late.log, late.log[-1500:]
    return ""


def fill_the_object_store(scene: Scene) -> str:
    """Somebody else's job fills the object stores of both nodes for a while."""
    other = scene.cluster.submit("-m", "tests.cluster.fills_object_store")
    assert other.wait() == "SUCCEEDED", other.log
    return ""


def cut_a_link(scene: Scene) -> str:
    """No packet passes between a node and the others for a minute."""
    name = scene.rng.choice(["node1", "node2"])
    scene.cluster.cut(name)
    time.sleep(60 if chaos_count(0, 1) else 20)
    scene.cluster.mend(name)
    return "is gone"


FAULTS: list[Callable[[Scene], str]] = [
    kill_a_node, kill_the_head, kill_the_driver, kill_a_decoder, kill_an_actor, add_a_node, drain_a_node, pause_the_driver,
    fill_the_object_store, cut_a_link,
]  # fmt: skip
SAMPLE = (kill_a_node,)
CASES = [(fault, seed) for fault in FAULTS for seed in range(chaos_count(int(fault in SAMPLE), 3))]


@pytest.fixture
def cluster(request, tmp_path) -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one each."""
    links = request.param
    if links:
        can_link()
    made = Cluster(tmp_path, links)
    made.env |= {**LEASE, "SLOW_S": SLOW_S}
    try:
        made.start_head()
        made.add("node1")
        made.add("node2")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("cluster", "fault", "seed"),
    [pytest.param(fault is cut_a_link, fault, seed, id=f"{fault.__name__}-{seed}") for fault, seed in CASES],
    indirect=["cluster"],
)
def test_a_job_on_a_cluster_that_breaks_leaves_the_rows_of_a_calm_run(cluster, fault, seed, corpus, tmp_path):
    lake, recipe = corpus.lake(tmp_path / "lake"), written_recipe(tmp_path)
    rng = random.Random(f"{fault.__name__} {seed}")
    scene, frames = Scene(cluster, lake, recipe, submitted(cluster, lake, recipe), rng), rng.choice((1, 40, 120))
    until(lambda: lake.count("frames") >= frames, 120, lambda: scene.job.log)
    said = fault(scene)
    assert scene.job.wait() == "SUCCEEDED", scene.job.log[-3000:]
    # A job that ends before a node is missed, since it had nothing more in hand, has nothing to tell.
    assert said in scene.job.log or not scene.repeated(), scene.job.log[-3000:]
    assert verify_lake(lake).violations == []
    assert differences(corpus.calm, lake) == []
    quarantined = Counter(lake.read("quarantine", ["error_type"])["error_type"].to_pylist())
    assert not quarantined
    print(f"{fault.__name__} {seed}: {scene.repeated()} of {PICTURES} pictures computed again")
