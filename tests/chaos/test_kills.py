"""A command that is killed at any of its writes, whatever comes next, and given again leaves the rows of one never killed."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.chaos.commands import DIED, age, run
from tests.chaos.stage import SCENARIOS, Stage
from tests.conftest import chaos_count

pytestmark = pytest.mark.chaos


@dataclass(frozen=True)
class Kill:
    """When a command dies, and what happens before it is given again."""

    at: int
    after: bool
    index: bool = False
    later: bool = False
    elsewhere: bool = False


def draw_kills(stage: Stage, count: int) -> list[Kill]:
    """Every write, before and after, with what comes next drawn by lot; then more of the same. Seeded."""
    rng = random.Random(f"kills of {stage.scenario.name}")
    every = [Kill(at, after) for at in range(1, stage.writes + 1) for after in (False, True)]
    nexts = list(itertools.product((False, True), repeat=3))
    rng.shuffle(every)
    if count < len(every):
        chosen = every[:count]
    else:
        chosen = every + rng.choices(every, k=count - len(every))
    offset = rng.randrange(len(nexts))
    return [Kill(k.at, k.after, *nexts[(i + offset) % len(nexts)]) for i, k in enumerate(chosen)]


def survives(stage: Stage, number: int, kill: Kill) -> list[str]:
    """Kills the command, lets happen what shall, gives it again. Returns what differs from the calm run."""
    name = f"killed{number}"
    stage.copy("start", name)
    code, _ = run(stage.run(stage.scenario.command, name, at=kill.at, when="after" if kill.after else "before"))
    if code not in (DIED, 0, 1):
        return [f"{kill}: it ended with {code} before it was killed: {stage.log(name)}"]
    if kill.later and (stage.folder / name).exists():
        age(stage.folder / name)
    host = "elsewhere" if kill.elsewhere else ""
    if kill.index and (stage.folder / name / "lake.json").exists():
        code, _ = run(stage.run("index --lake {lake}", name, host=host))
        if code != 0:
            return [f"{kill}: index ended with {code}: {stage.log(name)}"]
    code, _ = run(stage.run(stage.scenario.command, name, host=host))
    if code not in (0, 1):
        return [f"{kill}: given again it ended with {code}: {stage.log(name)}"]
    return [f"{kill}: {d}" for d in stage.differences(name)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_a_command_killed_at_any_write_and_given_again_leaves_the_rows_of_a_calm_run(scenario, tmp_path):
    stage = Stage(tmp_path, scenario)
    stage.prepare()
    kills = draw_kills(stage, chaos_count(2, max(scenario.cases, 2 * stage.writes)))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: survives(stage, number, kills[number]), range(len(kills))))
    print(f"{scenario.name}: {len(kills)} kills at {stage.writes} writes")
    assert [d for each in found for d in each] == []
