"""Decoding on nodes with CPUs, models on the node that has the device, two of them sharing it; and what crosses the link to it.

A custom resource stands for the device. The link is a pair of virtual network devices, whose bytes the kernel counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipelines.lake import Lake, verify_lake
from pipelines.sources import ingest
from tests.cluster.nodes import Cluster, can_link

PICTURES, WIDTH, HEIGHT = 120, 1280, 720
OPS = "tests.cluster.placed_ops"
RECIPE = f"""shots: {{detector: none}}
ops:
  - "{OPS}:Near"
  - "{OPS}:Model": {{resources: {{custom: {{card1: 0.5}}}}}}
  - "{OPS}:Other": {{resources: {{custom: {{card1: 0.5}}}}}}
"""


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A head, a node that decodes, and one with a device, behind a link."""
    can_link()
    made = Cluster(tmp_path, links=True)
    try:
        made.start_head()
        made.add("node2", cpus=2)
        made.add("card1", cpus=3)
        yield made
    finally:
        made.close()


def crossed(cluster: Cluster, name: str) -> int:
    """Bytes that have come to a node over its link."""
    return int(Path(f"/sys/class/net/{cluster.nodes[name].link}/statistics/tx_bytes").read_text())


@pytest.mark.timeout(400)
def test_models_share_a_device_and_what_crosses_to_it_is_encoded(cluster, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        rough = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8)).resize((WIDTH, HEIGHT))
        rough.save(folder / f"{i}.jpg", quality=90)
    ingest([str(folder)], str(tmp_path / "lake"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    lake, before = Lake.open(tmp_path / "lake"), crossed(cluster, "card1")
    words = ["--lake", lake.root, "--recipe", str(tmp_path / "recipe.yaml"), "--set", "resources.fuse=false"]
    job = cluster.submit("-m", "jobs.process", *words)
    assert job.wait() == "SUCCEEDED", job.log[-3000:]
    came = crossed(cluster, "card1") - before
    assert verify_lake(lake).violations == []
    rows = lake.read("frames", ["near", "model_at", "other_at", "jpeg"])
    device = next(n["node_id"] for n in cluster.alive() if "card1" in n["resources_total"])
    assert set(rows["model_at"].to_pylist()) == set(rows["other_at"].to_pylist()) == {f"{device} 0.5"}
    stored = pc.sum(pc.binary_length(rows["jpeg"])).as_py()
    views = PICTURES * 3 * (96 * 96 + 64 * 64)
    raw = PICTURES * WIDTH * HEIGHT * 3
    print(f"{came:,} bytes came to the device's node: pictures {stored:,}, views {views:,}; raw frames are {raw:,}")
    assert came < 2 * (stored + views) + (8 << 20)  # and Ray's own talk
    assert came < raw / 4
