"""Two runs that both think they hold a lake: the one that was taken for dead changes nothing, and stops with code 3."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import psutil
import pytest

from pipelines.lake import SCHEMAS
from tests.chaos.commands import DIED, calls, run, start
from tests.chaos.stage import SCENARIOS, Stage
from tests.conftest import chaos_count

pytestmark = pytest.mark.chaos
PROCESS = next(s for s in SCENARIOS if s.name == "process")


def epochs(lake: str) -> dict[str, list[int]]:
    """The epoch that each version of each table carries, oldest first."""
    found = {}
    for table in SCHEMAS:
        uri = f"{lake}/{table}.lance"
        versions = sorted(v["version"] for v in lance.dataset(uri).versions())
        found[table] = [int(lance.dataset(uri, version=v).config().get("vfm.epoch", 0)) for v in versions]
    return found


def overtaken(stage: Stage, number: int, fate: str) -> list[str]:
    """A run is paused or cut off at a random write; another host's run takes the lake; then the first goes on."""
    rng = random.Random(f"{fate} {number}")
    name, joined = f"{fate}{number}", str(stage.folder / f"{fate}{number}.joined")
    stage.copy("start", name)
    at, when = rng.randrange(1, stage.writes + 1), rng.choice(("before", "in", "in", "after"))
    options = {"at": at, "when": when, "fate": fate, "host": "first", "joined": joined}
    first = start(stage.run(stage.scenario.command, name, **options))
    while first.process.is_alive() and not _befell(first.process.pid, joined):
        time.sleep(0.02)
    code, _ = run(stage.run(stage.scenario.command, name, host="second"))
    Path(joined).touch()
    if first.process.is_alive():
        os.killpg(first.process.pid, signal.SIGCONT)
    ended = first.ended()
    found = [f"the second run ended with {code}: {stage.log(name)}"] if code not in (0, 1) else []
    if ended not in (0, 1, 3):  # 0, 1: it was before it took the lease, or had nothing left to write
        found.append(f"the first run ended with {ended}: {stage.log(name)}")
    for table, seen in calls(epochs, str(stage.folder / name)).items():
        if seen != sorted(seen):
            found.append(f"{table}: an older epoch commits after a takeover: {seen}")
    return [f"{at} {when}: {d}" for d in found + stage.differences(name)]


def _befell(pid: int, joined: str) -> bool:
    try:
        return os.path.exists(f"{joined}.waiting") or psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("writers"), PROCESS)
    stage.prepare()
    return stage


@pytest.mark.parametrize("fate", ["pause", "cut"])
def test_a_run_that_was_taken_for_dead_commits_nothing_once_it_goes_on(stage, fate):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda n: overtaken(stage, n, fate), range(chaos_count(2, 10))))
    assert [d for each in found for d in each] == []


@pytest.mark.parametrize("skew", [3600.0, -3600.0])
def test_clocks_that_differ_neither_free_a_lake_that_is_held_nor_lock_one_that_is_not(stage, skew):
    """A live holder with a wrong clock is left alone; a dead one with a wrong clock is succeeded."""
    for number in range(chaos_count(1, 5)):
        at = random.Random(f"{skew} {number}").randrange(4, stage.writes)
        name, joined = f"skew{skew}{number}", str(stage.folder / f"skew{skew}{number}.joined")
        stage.copy("start", name)
        # It waits at a write while its heartbeat goes on: alive, and slower than the lease.
        first = start(
            stage.run(
                stage.scenario.command, name, at=at, fate="wait", host="first", skew=skew, joined=joined, expires_s=3.0
            )
        )
        while first.process.is_alive() and not _befell(first.process.pid, joined):
            time.sleep(0.02)
        refused, _ = run(stage.run(stage.scenario.command, name, host="second", expires_s=3.0))
        Path(joined).touch()
        assert (refused, first.ended() in (0, 1)) == (2, True), stage.log(name)
        assert stage.differences(name) == []
        stage.copy("start", name)
        code, _ = run(stage.run(stage.scenario.command, name, at=at, host="first", skew=skew))
        assert code == DIED
        assert run(stage.run(stage.scenario.command, name, host="second"))[0] in (0, 1), stage.log(name)
        assert stage.differences(name) == []


def test_first_commands_at_once_leave_one_lake_and_refuse_the_others(tmp_path):
    ingest = Stage(tmp_path, SCENARIOS[0])
    ingest.prepare()
    for number in range(chaos_count(1, 6)):
        name = f"race{number}"
        started = [start(ingest.run(ingest.scenario.command, name)) for _ in range(4)]
        codes = sorted(command.ended() for command in started)
        assert codes[0] == 0, ingest.log(name)
        assert set(codes) <= {0, 2}, ingest.log(name)
        assert ingest.differences(name) == []
