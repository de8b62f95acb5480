"""The way a team runs it: a real cluster with token authentication, a job submitted over its API, a lake that verifies."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.lake import Lake, verify_lake
from pipelines.sources import ingest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray head of its own, with token authentication on. Yields (environment, dashboard address)."""
    folder = tmp_path_factory.mktemp("ray")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "HOME": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    gcs, dashboard, client = free_ports(3)
    temp = Path("/tmp") / f"vfm-ray-{gcs}"  # Ray's sockets need a short path
    head = [BIN / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    head += [
        f"--ray-client-server-port={client}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={temp}",
    ]
    head += [f"--object-store-memory={256 << 20}", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    process = subprocess.Popen(
        head, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            if (
                subprocess.run(
                    [BIN / "ray", "job", "list", "--address", address], env=env, capture_output=True
                ).returncode
                == 0
            ):
                break
        yield env, address
    finally:  # asked to end, Ray takes half a minute
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()
        process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def test_a_job_submitted_to_a_token_protected_cluster_fills_the_lake(cluster, tmp_path, photographs):
    env, address = cluster
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in photographs[:4]:
        shutil.copyfile(path, pictures / path.name)
    ingest([str(pictures)], str(tmp_path / "lake"))
    submit = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    job = ["python", "-m", "jobs.process", "--lake", str(tmp_path / "lake"), "--set", "shots.detector=none"]
    done = subprocess.run([*submit, *job], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lake = Lake.open(tmp_path / "lake")
    assert lake.count("frames") == 4
    assert verify_lake(lake).violations == []


def test_without_the_token_the_cluster_refuses(cluster):
    env, address = cluster
    anonymous = {k: v for k, v in env.items() if k not in ("HOME",)} | {
        "HOME": "/nonexistent",
        "RAY_AUTH_MODE": "disabled",
    }
    refused = subprocess.run(
        [BIN / "ray", "job", "list", "--address", address], env=anonymous, capture_output=True, text=True
    )
    assert refused.returncode != 0


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
