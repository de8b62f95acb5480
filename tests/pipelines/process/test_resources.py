"""If these fail, an op's resources are not what its actors get, or give other rows than a shared actor does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.cluster import NodeShape, place
from pipelines.lake import SCHEMAS, Lake, verify_lake
from pipelines.process.graph import ActorPool, stages_of
from pipelines.process.ops import plan_ops
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.run import process
from pipelines.sources import ingest
from tests.chaos.rows import differences
from vfm_ops.errors import UsageError, VfmError

PLACED = "tests.pipelines.process.placed_ops"


@pytest.fixture
def lake(tmp_path, ray_local) -> Lake:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 60, 3), 20 * i, np.uint8)).save(folder / f"{i}.jpg")
    ingest([str(folder)], str(tmp_path / "lake"))
    return Lake.open(tmp_path / "lake")


def ops(resources: dict | None) -> list:
    own = {} if resources is None else {"resources": resources}
    return [f"{PLACED}:first", f"{PLACED}:bright", {f"{PLACED}:Second": own}, f"{PLACED}:third"]


def processes(lake: Lake, column: str) -> set[str]:
    return set(lake.read("frames", [column])[column].to_pylist())


def test_an_op_with_resources_of_its_own_has_actors_of_its_own(lake, tmp_path):
    recipe = Recipe(ops=tuple(ops({"memory_mb": 200, "actors": 1})), resources=Resources(cpus_per_actor=1))
    counts = process(lake, recipe).counts
    assert (counts["assets"], counts["dropped"]) == (12, 4)
    (second,) = processes(lake, "second")
    assert second.split()[1:] == ["1", "200"]
    assert second not in processes(lake, "first") | processes(lake, "third")
    assert processes(lake, "first").isdisjoint(processes(lake, "third"))
    assert verify_lake(lake).violations == []
    shared = Lake.create(tmp_path / "shared")
    ingest([str(tmp_path / "in")], shared.root)
    process(shared, Recipe(ops=tuple(ops(None)), resources=Resources(cpus_per_actor=1)))
    assert processes(shared, "first") == processes(shared, "second")
    assert differences(lake, shared, ignore={"first", "second", "third"}) == []


def test_an_op_that_breaks_its_contract_late_is_named_and_its_unit_stays_pending(ray_local, bikes, tmp_path):
    """Its actor has sent frames of the unit on by then, with which Ray joins the error."""
    lake = Lake.create(tmp_path / "lake")
    ingest([str(bikes)], lake.root)
    own = {"quality": {"resources": {"actors": 1}}}
    with pytest.raises(VfmError, match="op late gave 31 for 32 rows"):
        process(lake, Recipe(ops=(f"{PLACED}:Late", own), sampling={"fps": 25}))
    assert lake.count("frames") == lake.count("quarantine") == 0
    assert process(lake, Recipe(ops=("quality",))).counts["assets"] == 1


def test_where_an_op_runs_is_no_part_of_its_key_and_an_op_that_comes_late_has_its_actors_too(lake):
    process(lake, Recipe(ops=(f"{PLACED}:first", {f"{PLACED}:Second": {}})))
    before = processes(lake, "second")
    process(lake, Recipe(ops=(f"{PLACED}:first", {f"{PLACED}:Second": {"resources": {"memory_mb": 100}}})))
    assert processes(lake, "second") == before
    late = {f"{PLACED}:Second": {"as": "late", "resources": {"memory_mb": 100}}}
    process(lake, Recipe(ops=(f"{PLACED}:first", {f"{PLACED}:Second": {}}, late)))
    assert {text.split()[2] for text in processes(lake, "late_second")} == {"100"}


def test_neighbours_share_a_stage_but_for_those_with_resources(lake):
    recipe = Recipe(ops=tuple(ops({"actors": [1, 3]})))
    planned = plan_ops(recipe, lake.schema("frames"))
    from pipelines.lake import Work

    work = Work(recipe.hash, None, "", False)
    stages = stages_of(planned, recipe, work)
    assert [(part.decode, part.ops, part.write, actors.pool) for part, actors in stages] == [
        (True, ("first", "bright"), False, (1, None)),
        (False, ("second",), False, (1, 3)),
        (False, ("third",), True, (1, None)),
    ]
    assert isinstance(stages[0][1], ActorPool)
    assert stages[0][1].cpus <= 2, "of four CPUs, one is the op's, and one is what comes after it"


def test_cpus_of_ops_are_left_to_them():
    shape = NodeShape(4)
    assert place(Resources(), {shape: 1}, {}, reserved=[2]).cpus == 2
    with pytest.raises(UsageError, match=r"take 4 CPUs of 4 in the cluster, and none is left to decode: set fewer"):
        place(Resources(), {shape: 1}, {}, reserved=[3, 1])
    place(Resources(), {shape: 1}, {NodeShape(8): 2}, reserved=[3, 1])  # more nodes may come


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpu": 1}, "op quality: resources has no setting gpu: did you mean gpus"),
        ({"cpus": 0}, "op quality: resources, setting cpus: it should be greater than 0"),
        (3, "op quality: resources: 3 is no mapping"),
    ],
)
def test_wrong_resources_are_named(resources, message):
    with pytest.raises(ValueError, match=message):
        Recipe(ops=({"quality": {"resources": resources}},))


def test_shots_may_stand_in_the_list():
    listed = Recipe(ops=("shots", "quality"))
    assert listed == Recipe(ops=("quality",), shots={"detector": "auto"})
    assert Recipe(ops=({"shots": "content"},)).shots.detector == "content"
    assert Recipe(ops=({"shots": {"min_motion": 0.1}},)).shots.min_motion == 0.1
    with pytest.raises(ValueError, match="shots are in the recipe twice"):
        Recipe(ops=("shots",), shots={"detector": "content"})


def test_a_node_of_a_cluster_plans_for_cards_that_others_have(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("pipelines.process.ops.has_ray", lambda: True)
    known, ops = SCHEMAS["frames"], ["phash", {"embed": "clip:pocket"}]
    on_cards = plan_ops(Recipe(ops=ops, resources=Resources(device="cuda")), known)
    assert [one.key for one in on_cards] == [one.key for one in plan_ops(Recipe(ops=ops), known)]
    with pytest.raises(UsageError, match="no CUDA device"):
        on_cards[-1].op.embedder  # but nothing runs here that was to run on a card  # noqa: B018


def test_a_machine_without_a_card_refuses_a_recipe_for_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("pipelines.process.ops.has_ray", lambda: False)
    for recipe in (
        Recipe(ops=["phash"], resources=Resources(device="cuda")),
        Recipe(ops=[{"phash": {"resources": {"device": "cuda"}}}]),
    ):
        with pytest.raises(UsageError, match="no CUDA device"):
            plan_ops(recipe, SCHEMAS["frames"])
