"""A store that fails 15 % of all requests, and refuses for half a minute, under runs that are killed twice: the rows are those
of a calm run, and nobody is quarantined for the store's sake."""

from __future__ import annotations

import random

import pytest

from tests.chaos.commands import run
from tests.chaos.stage import SCENARIOS, Stage
from tests.conftest import chaos_count, optional_package

pytestmark = pytest.mark.chaos
PROCESS = next(s for s in SCENARIOS if s.name == "process")
TRIES = 8


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("store"), PROCESS)
    stage.prepare()  # on disk: what the store's lakes are compared with
    return stage


@pytest.fixture
def store():
    optional_package("moto")
    from tests.faulty_store import FaultyStore

    with FaultyStore(seed=0) as store:
        yield store


@pytest.mark.parametrize("number", range(10))
def test_faults_and_kills_together_leave_the_rows_of_a_calm_run(stage, store, number):
    if number >= chaos_count(1, 10):
        pytest.skip("one of ten in make test: make setup && make chaos runs all")
    rng = random.Random(f"store {number}")
    name, stage.store = "lake", f"s3://{store.bucket()}"
    assert run(stage.run("ingest {first} --lake {lake}", name))[0] == 0, stage.log(name)
    for fault in ("503", "applied", "cut", "slow", "500"):
        store.fail(fault, rate=0.03)
    store.fail("403", method="PUT", after=rng.randrange(5, 60), seconds=chaos_count(3, 30))
    for _ in range(2):
        code, _ = run(
            stage.run(
                PROCESS.command, name, at=rng.randrange(2, 3 * stage.writes), when=rng.choice(("before", "after"))
            )
        )
        assert code in (0, 1, 3, 137), stage.log(name)
    codes = []
    while len(codes) < TRIES and not (codes and codes[-1] in (0, 1)):
        codes.append(run(stage.run(PROCESS.command, name))[0])
        assert codes[-1] in (0, 1, 3), stage.log(name)
    store.heal()
    assert codes[-1] in (0, 1), (codes, stage.log(name))
    assert stage.differences(name) == []
