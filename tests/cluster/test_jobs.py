"""The way a team runs it: a real cluster with token authentication, a job submitted over its API, a lake that verifies."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from pipelines.lake import Lake, verify_lake
from pipelines.sources import ingest
from tests.cluster.nodes import BIN, ROOT, Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray with token authentication, and a node of two CPUs."""
    made = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        made.start_head(cpus=2)
        yield made
    finally:
        made.close()


def test_a_job_submitted_to_a_token_protected_cluster_fills_the_lake(cluster, tmp_path, photographs):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in photographs[:4]:
        shutil.copyfile(path, pictures / path.name)
    ingest([str(pictures)], str(tmp_path / "lake"))
    job = ["python", "-m", "jobs.process", "--lake", str(tmp_path / "lake"), "--set", "shots.detector=none"]
    words = ["--address", cluster.dashboard, "--working-dir", str(ROOT), "--", *job]
    cluster.ray("job", "submit", *words, timeout=280)
    lake = Lake.open(tmp_path / "lake")
    assert lake.count("frames") == 4
    assert verify_lake(lake).violations == []


def test_without_the_token_the_cluster_refuses(cluster):
    anonymous = cluster.env | {"HOME": "/nonexistent", "RAY_AUTH_MODE": "disabled"}
    words = [BIN / "ray", "job", "list", "--address", cluster.dashboard]
    assert subprocess.run(words, env=anonymous, capture_output=True).returncode != 0


def test_rays_own_schema_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert "GPU" not in types["cpu_decode"]["resources"]
    assert types["gpu_model"]["resources"]["GPU"] == 1
    assert types["cpu_decode"]["max_workers"] > 1
    assert types["gpu_model"]["max_workers"] > 1
