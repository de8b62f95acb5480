"""Workers without Ray: what they are given comes back in order; one that ends costs the block that it had, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.lake import Lake, verify_lake
from pipelines.process import worker_process
from pipelines.process.local import AHEAD, LocalWorkers, WorkerDied
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.run import process
from pipelines.sources import ingest
from tests.conftest import chaos_count

pytestmark = pytest.mark.workers
LEVEL = "tests.pipelines.process.dying_ops:level"


class Doubles:
    """Doubles numbers; at a negative one it ends its process, so often as the file of that name is not there yet."""

    def __init__(self, marks: str) -> None:
        self.marks = Path(marks)

    def __call__(self, block: pa.Table) -> pa.Table:
        (n,) = block["n"].to_pylist()
        if n < 0 and len(list(self.marks.glob(f"{n}-*"))) < -n:
            (self.marks / f"{n}-{os.getpid()}").touch()
            os._exit(7)
        return pa.table({"n": [2 * n], "pid": [os.getpid()]})

    def close(self) -> None:
        """Nothing to end."""


def run(tmp_path: Path, numbers: list[int], carefully: bool = False) -> list[int | str]:
    blocks = (pa.table({"n": [n]}) for n in numbers)
    with LocalWorkers(Doubles, (str(tmp_path),)) as workers:
        given = workers.run_carefully(blocks) if carefully else workers.run(blocks)
        return [str(made) if isinstance(made, WorkerDied) else made[0]["n"][0].as_py() for _, made in given]


def test_blocks_come_back_in_order(tmp_path):
    assert run(tmp_path, list(range(3 * AHEAD))) == [2 * n for n in range(3 * AHEAD)]
    assert run(tmp_path, []) == []


def test_a_worker_that_ends_costs_the_block_it_had(tmp_path):
    assert run(tmp_path, [1, -5, 2, 3, -6]) == [2, "exit code 7", 4, 6, "exit code 7"]


def test_a_block_is_tried_three_times_where_no_op_is_to_blame(tmp_path):
    assert sorted(run(tmp_path, [-2, 1, -3, 2], carefully=True), key=str) == [-4, 2, 4, "exit code 7"]


def test_several_workers_share_the_blocks(tmp_path):
    blocks = [pa.table({"n": [n]}) for n in [1, 2, -9, 3, 4, 5]]
    with LocalWorkers(Doubles, (str(tmp_path),), 2) as workers:
        given = list(workers.run(blocks))
    answers = [made for _, made in given if not isinstance(made, WorkerDied)]
    assert sorted(made[0]["n"][0].as_py() for made in answers) == [2, 4, 6, 8, 10]
    assert len({made[0]["pid"][0].as_py() for made in answers}) >= 2


class Facts:
    """Says what it finds in its process."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.table({"pid": [os.getpid()], "late": [os.environ.get("VFM_TEST_LATE")]})


def test_a_worker_that_was_started_ahead_is_the_first_that_is_taken_and_sees_what_was_set_since(monkeypatch):
    block = pa.table({"n": [1]})
    with worker_process.started_ahead("pipelines.process.chain"):
        ahead = worker_process._ahead.popen.pid
        monkeypatch.setenv("VFM_TEST_LATE", "set")
        with LocalWorkers(Facts, (), 2) as workers:
            facts = [made[0].to_pylist()[0] for _, made in workers.run([block] * 4)]
    pids = {fact["pid"] for fact in facts}
    assert ahead in pids
    assert len(pids) == 2
    assert {fact["late"] for fact in facts} == {"set"}


@pytest.mark.parametrize("end", [worker_process.drop_ahead, lambda: None], ids=["dropped", "left"])
def test_a_worker_that_was_started_ahead_and_not_needed_is_ended(end):
    with worker_process.started_ahead("pipelines.process.chain"):
        ahead = worker_process._ahead.popen
        end()
    assert ahead.poll() is not None


def test_no_worker_outlives_who_started_it(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[3])]}
from tests.pipelines.process.test_local import Doubles, LocalWorkers, pa
found = LocalWorkers(Doubles, ({str(tmp_path)!r},)).run((pa.table({{"n": [n]}}) for n in range(9)))
print(next(found)[1][0]["pid"][0].as_py(), flush=True)
os.kill(os.getpid(), 9)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


@pytest.fixture
def lake(tmp_path, monkeypatch) -> Lake:
    """Five pictures, the last one white, and an op that dies of white."""
    (tmp_path / "in").mkdir()
    for i, shade in enumerate([10, 60, 110, 160, 255]):
        picture = np.full((32, 40, 3), shade, np.uint8)
        picture[:4, :4] = 0 if shade < 255 else 255
        Image.fromarray(picture).save(tmp_path / "in" / f"{i}.png")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])]))
    ingest([str(tmp_path / "in")], str(tmp_path / "lake"))
    return Lake.open(tmp_path / "lake")


def script(tmp_path: Path, lake: Lake, ops: list) -> str:
    """What a script prints with nothing but calls at its top level, which no worker may run again."""
    path = tmp_path / "script.py"
    path.write_text(f"""
from pipelines import Lake, Recipe, process
summary = process(Lake({lake.root!r}), Recipe(ops={ops!r}), progress=False)
print(summary.counts.get("quarantined", 0))
""")
    env = os.environ | {"RAY_ADDRESS": ""}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("late", [False, True])
def test_an_op_that_ends_its_worker_costs_its_own_value_of_the_row_that_it_did_so_on(lake, tmp_path, late):
    if late:
        assert script(tmp_path, lake, ["quality"]) == "0\n"
    assert script(tmp_path, lake, ["quality", LEVEL]) == "0\n"
    check_only_the_white_one_lacks(lake, "level")


def check_only_the_white_one_lacks(lake: Lake, column: str) -> None:
    assert verify_lake(lake).violations == []
    assert lake.count("quarantine") == 0
    assert lake.count("frames", "quality IS NOT NULL") == 5
    assert lake.count("frames", f"{column} IS NOT NULL") == 4
    (row,) = lake.read("frames", ["error"], f"{column} IS NULL").to_pylist()
    assert signal.SIGKILL.name in json.loads(row["error"])[column]


@pytest.mark.chaos
@pytest.mark.parametrize("late", [False, True])
def test_on_ray_it_costs_no_more(lake, ray_local, late):
    if late >= chaos_count(0, 2):
        pytest.skip("some minutes where a machine is busy: make setup && make chaos runs it")
    on_ray = Resources(cpus_per_actor=1)
    if late:
        process(lake, Recipe(ops=("quality",), resources=on_ray))
    assert process(lake, Recipe(ops=("quality", LEVEL), resources=on_ray)).in_quarantine == 0
    check_only_the_white_one_lacks(lake, "level")


def test_without_any_worker_that_lives_no_item_is_to_blame(lake, tmp_path):
    lake.delete("assets", "asset_id", lake.read("assets", ["asset_id"])["asset_id"].to_pylist()[1:])
    module, name = LEVEL.split(":")
    stillborn = f"import os, sys\nif '-P' in sys.orig_argv: os._exit(3)\nfrom {module} import {name}\n"
    (tmp_path / "stillborn.py").write_text(stillborn)
    command = [sys.executable, "-m", "jobs.process", "--lake", lake.root, "--set", f"ops=[stillborn:{name}]"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": ""}, check=False)
    assert done.returncode == 3
    assert "every worker died before it had done anything" in done.stderr
    assert lake.count("quarantine") == 0
