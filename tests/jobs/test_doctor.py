"""If these fail, `vfm doctor` calls sound what is slow or unsafe: a lake, a machine, models, a cluster; or leaves something."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import jobs.doctor.machine as machine
import pipelines.lake.health as health
from jobs.cli import main
from jobs.doctor import cluster
from jobs.doctor.models import default_finding, lake_models
from pipelines.lake import SCHEMAS, Lake, embedding_column, embedding_field, with_nulls
from pipelines.lake.health import Finding, examine
from pipelines.lake.keys import record_keys
from pipelines.lake.query import CHOICE
from tests.conftest import default_weights
from vfm_ops.embed import load_embedder
from vfm_ops.models.shipped import pocket_path
from vfm_ops.op_registry import load_op


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    lake.ensure("frames", [embedding_field("timm:tiny", 4, {"digest": "d"})])
    rows = {
        "frame_id": [str(i) for i in range(30)],
        "asset_id": ["a"] * 30,
        "run_key": ["r"] * 30,
        embedding_column("timm:tiny"): pa.array(
            list(np.ones((30, 4), np.float16)), lake.schema("frames").field(embedding_column("timm:tiny")).type
        ),
    }
    for start in range(0, 30, 10):
        part = with_nulls(lake.schema("frames"), {name: values[start : start + 10] for name, values in rows.items()})
        lake.commit("frames", lake.write_fragments("frames", part))
    return lake


def told(lake: Lake) -> dict[str, tuple[str, bool]]:
    return {finding.what: (finding.found, finding.fine) for finding in examine(lake)}


def test_a_sound_lake_is_fine_and_left_as_it_was(lake, capsys):
    before = sorted(path.name for path in Path(lake.root).iterdir())
    assert all(fine for _, fine in told(lake).values())
    assert told(lake)["store"] == ("refuses a second writer of the same file", True)
    assert sorted(path.name for path in Path(lake.root).iterdir()) == before
    assert main(["doctor", "--lake", lake.root]) in (0, 3)  # 3: this machine may lack something
    assert "refuses a second writer" in capsys.readouterr().out


def test_what_is_slow_is_said_with_what_to_do(lake, monkeypatch):
    monkeypatch.setattr(health, "MOST_FRAGMENTS", 2)
    monkeypatch.setattr(health, "EXACT_ROWS", 20)
    monkeypatch.setattr(health, "LARGEST_UNINDEXED", 5)
    lake.append("quarantine", with_nulls(SCHEMAS["quarantine"], {"asset_id": ["a"], "run_key": ["r"]}))
    findings = told(lake)
    assert findings["table frames"] == ("3 fragments of 10 rows", False)
    assert findings[embedding_column("timm:tiny")] == ("30 vectors, 30 in no index", False)
    assert findings["quarantine"] == ("1 items", False)


def test_a_store_without_put_if_absent_is_named(lake, monkeypatch):
    write = health.write_table
    monkeypatch.setattr(health, "write_table", lambda uri, rows: write(uri, rows) if "doctor" not in uri else None)
    assert told(lake)["store"] == ("lets two writers make the same file", False)


def test_a_place_that_can_not_be_written_is_named(lake, monkeypatch):
    def refused(uri, rows):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(health, "write_table", refused)
    assert told(lake)["store"] == ("can't be written (403 Forbidden)", False)


# -- a lake's place, and how old its indices are -----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "mark"), [("nfs4", "slow"), ("fuse.s3fs", "wrong"), ("ext4", "fine")])
def test_a_lake_on_another_machine_is_slow_and_on_a_mounted_bucket_unsafe(lake, monkeypatch, kind, mark):
    Mount = namedtuple("Mount", "mountpoint fstype")
    above = [Mount("/", "overlay"), Mount(str(Path(lake.root).resolve().parent), kind)]
    monkeypatch.setattr(health.psutil, "disk_partitions", lambda all: above)
    found = [f for f in examine(lake) if f.what == "file system"]
    assert [(f.fine, f.slow) for f in found] == {"slow": [(True, True)], "wrong": [(False, False)], "fine": []}[mark]
    assert all(kind in f.found and f.advice for f in found)


def test_an_index_whose_kind_was_chosen_for_a_smaller_lake_is_old(lake, monkeypatch):
    monkeypatch.setattr(health, "EXACT_ROWS", 20)
    column = embedding_column("timm:tiny")
    lake.change(
        "frames", "index", lambda ds: ds.create_index(column, "IVF_FLAT", num_partitions=1, name=f"{column}_idx")
    )
    for rows, old in ((30, False), (7, True)):  # of the 30 there are now
        tuned = {f"vfm.search.{column}": '{"nprobes": 1}', CHOICE + column: json.dumps({"rows": rows, "tried": []})}
        lake.change("frames", "tune", lambda ds, tuned=tuned: ds.update_config(tuned))
        (found,) = [f for f in examine(lake) if f.what == column]
        assert (found.fine, found.slow) == (True, old)


# -- the machine -------------------------------------------------------------------------------------------------------


def marks(findings: list[Finding]) -> dict[str, str]:
    return {f.what: "slow" if f.slow else "fine" if f.fine else "wrong" for f in findings}


def test_threads_that_outnumber_the_processors_are_named():
    assert marks(machine.processors(8, None, {})) == {"processors": "fine"}
    assert marks(machine.processors(8, 8.0, {"OMP_NUM_THREADS": "8"})) == {"processors": "fine"}
    found = machine.processors(8, 2.5, {"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": ""})
    assert marks(found) == {"processors": "slow", "OMP_NUM_THREADS": "slow"}
    assert "taskset -c 0-1" in found[0].advice
    assert "8" in found[1].advice


@pytest.mark.parametrize(
    ("files", "cpus", "left"),
    [
        (
            {
                "cpu.max": "150000 100000\n",
                "memory.max": "1000\n",
                "memory.current": "900\n",
                "memory.stat": "anon 300\nfile 600\ninactive_file 350\nactive_file 150\nshmem 100\n",
            },
            1.5,
            600,
        ),
        (
            {"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "400\n", "memory.stat": "anon 400\n"},
            None,
            None,
        ),
        (
            {
                "cpu/cpu.cfs_quota_us": "400000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "500\n",
                "memory/memory.usage_in_bytes": "600\n",
                "memory/memory.stat": "cache 0\nactive_file 0\n",
            },
            4.0,
            0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        ({}, None, None),
    ],
)
def test_a_containers_limits_are_read_of_either_version(files, cpus, left, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert (machine.cpu_quota(), machine.memory_left()) == (cpus, left)


def test_memory_is_what_the_container_is_left_with():
    assert marks([machine.memory(16 << 30, None)]) == {"memory": "fine"}
    tight = machine.memory(16 << 30, 1 << 30)
    assert not tight.fine
    assert "container" in tight.found
    assert machine.memory(16 << 30, 1 << 60).found == "16.0 GiB free"  # version 1 without a limit


def test_a_processor_without_vector_instructions_is_slow():
    (modern,) = machine.instructions("processor : 0\nflags\t\t: fpu avx2 avx512f amx_tile\n")
    assert (modern.found, modern.slow) == ("AVX2, AVX-512, AMX", False)
    assert machine.instructions("flags : fpu sse2\n")[0].slow
    assert not machine.instructions("Features\t: fp asimd bf16\n")[0].slow
    assert machine.instructions("Features\t: fp asimd\n")[0].slow
    assert machine.instructions("") == []


@pytest.mark.parametrize(
    ("total", "free", "fine", "advice"),
    [(64 << 20, 64 << 20, False, "--shm-size"), (8 << 30, 0, False, "end what fills it"), (8 << 30, 4 << 30, True, "")],
)
def test_shared_memory_that_docker_left_small_is_named(total, free, fine, advice, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")(total, total - free, free)
    monkeypatch.setattr(machine, "SHM", tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    (found,) = machine.shared_memory()
    assert found.fine == fine
    assert advice in found.advice


def test_a_slow_disk_is_slow_a_fast_one_fine_and_both_are_left_as_they_were(tmp_path, monkeypatch):
    for rate, sync, mark in ((500.0, 1.0, "fine"), (10.0, 1.0, "slow"), (500.0, 200.0, "slow")):
        monkeypatch.setattr(machine, "write_rate", lambda folder, r=rate, s=sync: (r, s))
        assert list(marks([machine.disk(tmp_path)]).values()) == [mark]
    monkeypatch.undo()
    rate, sync = machine.write_rate(tmp_path)
    assert rate > 0
    assert sync > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_no_error(tmp_path, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "write_rate", refused)
    found = machine.disk(tmp_path)
    assert found.fine
    assert "can't be written (Permission denied)" in found.found


# -- models ------------------------------------------------------------------------------------------------------------


def test_the_default_models_weights_and_runtime_are_told(tmp_path, monkeypatch):
    default_weights()
    monkeypatch.setenv("VFM_CACHE", str(tmp_path))
    before = default_finding()
    assert before.fine
    assert "first run measures" in before.found or "torch" in before.found
    embedder = load_embedder("timm:tf_efficientnet_lite0")
    assert default_finding().found == f"weights here; runs on {embedder.runtime} at {embedder.precision}, as measured"


def test_weights_that_are_missing_are_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr("jobs.doctor.models.DEFAULT_EMBEDDER", "timm:/no/such/folder")
    found = default_finding()
    assert not found.fine
    assert "/no/such/folder" in found.advice


def test_a_lakes_models_are_held_against_the_weights_that_are_here(tmp_path):
    folder = tmp_path / "clip-mine"
    shutil.copytree(pocket_path("clip"), folder)
    spec, detect = f"clip:{folder}", load_op({"detect": {"prompts": "person ."}})
    lake = Lake.create(tmp_path / "lake")
    made = load_embedder(spec)
    lake.ensure("frames", [embedding_field(spec, made.dim, {"digest": made.digest})])
    row = dict.fromkeys(SCHEMAS["keys"].names)
    row |= {"op": "detect", "key": "k", "name": "detect", "version": 1, "digest": detect.digest()}
    row |= {"settings": json.dumps(detect.settings.given(detect.unkeyed)), "recorded_at": datetime.now(UTC)}
    record_keys(lake, [row])
    assert marks(lake_models(lake)) == {f"model {spec}": "fine", "model of op detect": "fine"}
    record_keys(lake, [row | {"digest": "0" * 64}])
    (weights,) = [p for p in folder.iterdir() if p.suffix == ".safetensors"]
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")  # trained on
    found = {f.what: f for f in lake_models(lake)}
    assert [f.fine for f in found.values()] == [False, False]
    assert made.digest[:16] in found[f"model {spec}"].found
    shutil.rmtree(folder)
    gone = next(f for f in lake_models(lake) if spec in f.what)
    assert not gone.fine
    assert str(folder) in gone.advice


# -- the cluster -------------------------------------------------------------------------------------------------------


def test_a_cluster_that_can_not_be_joined_is_named(monkeypatch):
    def refused():
        raise ConnectionError("no head at 10.0.0.1:6379\nmore")

    monkeypatch.setattr("pipelines.cluster.connect", refused)
    assert cluster.examine_cluster() == []  # there is none
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (found,) = cluster.examine_cluster()
    assert not found.fine
    assert found.found == "can't be joined (no head at 10.0.0.1:6379)"


def test_nodes_tell_what_is_installed_on_them(ray_local):
    import platform

    import ray

    nodes = ray.nodes()
    facts, silent = cluster.ask_nodes(nodes)
    assert silent == []
    assert [one.versions["Python"] for one in facts] == [platform.python_version()] * len(nodes)
    assert [one.versions["ray"] for one in facts] == [ray.__version__] * len(nodes)
    assert all(0 < one.disk <= 1 for one in facts)
    assert marks(cluster.versions_differ(facts)) == {"versions of nodes": "fine"}


def facts_of_node(name: str, disk: float = 0.5, **versions: str) -> cluster.NodeFacts:
    usual = {"Python": "3.12.3", "ray": "2.60.0", "vfm-pipelines": "0.1.0"}
    return cluster.NodeFacts(name, usual | versions, disk)


def test_nodes_that_differ_are_named():
    alike = [facts_of_node("a"), facts_of_node("b")]
    assert marks(cluster.versions_differ(alike)) == {"versions of nodes": "fine"}
    odd = facts_of_node("c", Python="3.11.7", ray="2.59.0")
    found = {f.what: f for f in cluster.versions_differ([*alike, odd])}
    assert marks(list(found.values())) == {"Python of nodes": "wrong", "ray of nodes": "wrong"}
    assert "3.12.3 on 2, 3.11.7 on 1" in found["Python of nodes"].found
    assert found["Python of nodes"].advice.endswith("look at c")
    bare = [facts_of_node("a", **{"vfm-pipelines": "none"}), facts_of_node("b", **{"vfm-pipelines": "none"})]
    assert marks(cluster.versions_differ(bare)) == {"versions of nodes": "fine"}  # a working directory brings it
    assert marks(cluster.versions_differ([*alike, bare[0]])) == {"vfm-pipelines of nodes": "wrong"}
    assert marks(cluster.versions_differ([facts_of_node("a", pylance="none")])) == {"pylance of nodes": "wrong"}


def test_full_nodes_and_small_object_stores_are_named():
    assert cluster.disks([facts_of_node("a")]) == []
    assert [f.found for f in cluster.disks([facts_of_node("a"), facts_of_node("b", disk=0.97)])] == ["full: b 97%"]
    assert not cluster.busy({"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}).slow
    full = cluster.busy({"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0})
    assert full.slow
    assert "GPUs" in full.advice
    node = {"NodeManagerHostname": "a", "Resources": {"CPU": 4.0, "object_store_memory": float(64 << 20)}}
    assert [f.slow for f in cluster.stores([node])] == [True]
    node["Resources"]["object_store_memory"] = float(4 << 30)
    assert cluster.stores([node]) == []
    assert (
        cluster.stores([{"NodeManagerHostname": "head", "Resources": {"object_store_memory": 1.0}}]) == []
    )  # runs no stage
