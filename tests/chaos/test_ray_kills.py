"""The same on Ray: the driver killed at any write, with all that it started; and actors that die under a run that goes on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.chaos.commands import DIED, age, run
from tests.chaos.stage import SCENARIOS, Stage
from tests.conftest import chaos_count

pytestmark = pytest.mark.chaos
PROCESS = next(s for s in SCENARIOS if s.name == "process")
# Named resources keep a small corpus from being done in the command's own process.
ON_RAY = replace(PROCESS, command=f"{PROCESS.command} --set resources.cpus_per_actor=1")


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("ray"), ON_RAY)
    stage.prepare()
    return stage


def test_a_driver_killed_at_any_write_is_succeeded_by_a_run_that_ends_with_the_rows_of_a_calm_one(stage):
    died, count = 0, chaos_count(1, 14)
    for number in range(count):
        rng = random.Random(f"driver {number}")
        name, host = f"driver{number}", rng.choice(("", "elsewhere"))
        stage.copy("start", name)
        at, when = rng.randrange(1, stage.writes + 1), rng.choice(("before", "after"))
        code, _ = run(stage.run(ON_RAY.command, name, at=at, when=when))
        assert code in (DIED, 0, 1), stage.log(name)  # commits come by the clock: a run may end before its n-th write
        died += code == DIED
        if rng.random() < 0.5:
            age(stage.folder / name)
            assert run(stage.run("index --lake {lake}", name, host=host))[0] == 0, stage.log(name)
        # What is left is little, and done without Ray: the rows are the same wherever they are made.
        assert run(stage.run(PROCESS.command, name, host=host))[0] in (0, 1), stage.log(name)
        assert stage.differences(name) == []
    assert died >= count // 2


def test_an_actor_that_dies_costs_nothing_but_time(stage):
    for number in range(chaos_count(1, 10)):
        rng = random.Random(f"actor {number}")
        name = f"actor{number}"
        stage.copy("start", name)
        code, _ = run(stage.run(ON_RAY.command, name, at=rng.randrange(1, stage.writes + 1), fate="worker"))
        assert code in (0, 1), stage.log(name)
        assert stage.differences(name) == []
