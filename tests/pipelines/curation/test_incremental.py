"""Later runs: new items meet the seeds, clusters and caps of the first one, and fill what was left open."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.curation import curate, reproduce, selections
from pipelines.curation.clusters import ClusterState, auto_levels
from pipelines.curation.recipe import CurationRecipe
from pipelines.curation.vectors import Vectors, VectorSource, cut_chunks
from tests.pipelines.curation.conftest import DIM, LakeBuilder, kinds, picture, unit
from vfm_ops.errors import UsageError


def rows_of(lake, name: str = "curated") -> dict[str, dict]:
    return {row["frame_id"]: row for row in selections.read_rows(lake, name).to_pylist()}


def grow(builder: LakeBuilder, vectors: list[np.ndarray], first: int) -> list[str]:
    return builder.stills([picture(first + i) for i in range(len(vectors))], vectors)


def near(x: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(len(x))
    return unit(x + amount * unit(noise - (noise @ x) * x))


@pytest.fixture
def grown(builder) -> tuple[LakeBuilder, np.ndarray, list[str]]:
    """Two kinds, 40 and 8 items."""
    x, _ = kinds([40, 8], seed=2, spread=0.8)
    return builder, x, builder.stills([picture(i) for i in range(48)], list(x))


def test_a_new_item_is_retrieved_when_it_comes_as_near_to_a_seed_as_those_before(grown):
    builder, x, ids = grown
    plan = CurationRecipe.model_validate(
        {
            "retrieve": {"seeds": {"frames": [ids[0]]}, "k": 5},
            "cluster": {"levels": [4]},
            "sample": None,
            "deduplicate": {},
        }
    )
    curate(builder.lake, plan)
    new = grow(builder, [near(x[0], 0.3), near(-x[0], 0.3)], 500)
    summary = curate(builder.lake, plan)
    rows = rows_of(builder.lake)
    assert [rows[i]["kind"] for i in new] == ["retrieved", "not_retrieved"]
    assert summary.manifest.kept == 6
    assert reproduce(builder.lake, "curated")[0]


def test_classes_of_labelled_seeds_fill_equally_and_a_new_item_must_be_as_clear(grown, tmp_path):
    builder, x, ids = grown
    seeds = LakeBuilder(tmp_path / "seeds")
    seeds.count = 1000  # other files than the lake's
    of_kind = [x[0], near(x[0], 0.5, 1), near(x[0], 0.5, 2)], [x[40], near(x[40], 0.5, 3), near(x[40], 0.5, 4)]
    for label, vectors in zip(("common", "rare"), of_kind):
        seeds.stills([picture(700 + i) for i in range(3)], vectors, label=label)
    plan = {
        "retrieve": {"seeds": str(tmp_path / "seeds"), "mode": "classes", "total": 12},
        "cluster": {"levels": [4]},
        "sample": None,
        "deduplicate": {},
    }
    curate(builder.lake, CurationRecipe.model_validate(plan))
    rows = rows_of(builder.lake)
    kept = [i for i in ids if rows[i]["kept"]]
    assert [rows[i]["reason"] for i in kept] == ["kept: of the seeds' class common"] * 6 + [
        "kept: of the seeds' class rare"
    ] * 6
    assert all(rows[i]["reason"].startswith("dropped: the seeds' class") for i in ids if i not in kept)
    new = grow(builder, [near(x[0], 0.1, 9), unit(x[0] + x[40])], 500)
    curate(builder.lake, CurationRecipe.model_validate(plan))
    assert [rows_of(builder.lake)[i]["kind"] for i in new] == ["seed_class", "class_full"]
    assert reproduce(builder.lake, "curated")[0]
    plan["retrieve"] |= {"seeds": {"frames": ids[:3]}}
    with pytest.raises(UsageError, match="items without a class"):
        curate(builder.lake, CurationRecipe.model_validate(plan), "unlabelled")


def test_a_rare_cluster_takes_new_items_up_to_its_cap_and_a_full_one_none(grown):
    builder, x, _ = grown
    plan = CurationRecipe.model_validate({"cluster": {"levels": [2]}, "sample": 20, "deduplicate": {}})
    curate(builder.lake, plan)
    before = rows_of(builder.lake)
    sizes = np.bincount([r["cluster"][0] for r in before.values() if r["kept"]])
    common, rare = int(sizes.argmax()), int(sizes.argmin())
    assert sizes.tolist() in ([12, 8], [8, 12])
    new = grow(builder, [near(x[40 + i % 8], 0.4, i) for i in range(7)] + [near(x[i], 0.4, i) for i in range(5)], 500)
    curate(builder.lake, plan)
    rows = rows_of(builder.lake)
    taken = [rows[i]["cluster"][0] for i in new if rows[i]["kept"]]
    assert taken == [rare] * 4  # 8 of 12 were there
    assert {rows[i]["kind"] for i in new if rows[i]["cluster"][0] == common} == {"over_represented"}
    ranks = sorted(r["rank"] for r in rows.values() if r["kept"])
    assert ranks == list(range(24))
    assert all(rows[i]["rank"] == r["rank"] for i, r in before.items())


def test_new_items_are_pruned_against_old_ones_and_against_each_other(grown):
    builder, x, ids = grown
    sections = {"cluster": {"levels": [4]}, "sample": None, "deduplicate": {}, "prune": {"cosine": 0.95}}
    plan = CurationRecipe.model_validate(sections)
    curate(builder.lake, plan)
    lonely = unit(np.cos(np.arange(DIM)))
    new = grow(builder, [near(x[3], 0.1), lonely, near(lonely, 0.1)], 500)
    curate(builder.lake, plan)
    rows = rows_of(builder.lake)
    assert (rows[new[0]]["kind"], rows[new[0]]["other"]) == ("redundant", ids[3])
    assert sorted([rows[new[1]]["kind"], rows[new[2]]["kind"]]) == ["passed", "redundant"]


@pytest.mark.parametrize("clustered", [True, False])
def test_a_new_duplicate_of_an_old_item_goes_even_where_it_is_the_better_one(grown, clustered):
    builder, x, ids = grown
    sections = {"deduplicate": {"semantic": True, "perceptual": True}, "sample": None, "cluster": clustered}
    plan = CurationRecipe.model_validate(sections)
    curate(builder.lake, plan)
    new = builder.stills(
        [picture(700, 128), picture(4, 160), picture(701)], [near(x[7], 0.1), near(x[9], 2.0, 5), -x[0]]
    )
    curate(builder.lake, plan)
    rows = rows_of(builder.lake)
    assert (rows[new[0]]["kind"], rows[new[0]]["other"]) == ("semantic_duplicate", ids[7])
    assert (rows[new[1]]["kind"], rows[new[1]]["other"]) == ("perceptual_duplicate", ids[4])
    assert rows[new[2]]["kept"]


def test_a_changed_recipe_or_model_decides_everything_anew_and_says_what_moved(grown):
    builder, _, _ = grown
    plan = {"cluster": {"levels": [4]}, "sample": 20, "deduplicate": {}}
    curate(builder.lake, CurationRecipe.model_validate(plan))
    summary = curate(builder.lake, CurationRecipe.model_validate(plan | {"sample": 10}))
    assert (summary.manifest.mode, summary.manifest.generation) == ("full", 2)
    changes = summary.manifest.changes
    assert changes["stayed"] + changes["left"] == 20
    assert changes["stayed"] + changes["entered"] == 10


def test_a_state_survives_its_bytes():
    rng = np.random.default_rng(0)
    state = ClusterState([rng.random((6, 3)), rng.random((2, 3))], [np.array([0, 0, 1, 1, 0, 1])], np.arange(6))
    back = ClusterState.from_bytes(state.to_bytes())
    assert back.path(4) == [0, 4]
    assert all(np.array_equal(a, b) for a, b in zip(back.centroids, state.centroids))
    assert np.array_equal(back.cap_K, np.arange(6))
    assert back.seed_floor_S is None


@pytest.mark.parametrize(
    ("items", "levels"), [(5, (1,)), (900, (45, 4)), (10_000, (500, 50, 5)), (10**8, (20000, 2000, 200))]
)
def test_levels_are_chosen_by_the_number_of_items(items, levels):
    assert auto_levels(items) == levels


def test_blocks_cover_the_wanted_rows_in_order_across_fragments_and_deletions(grown):
    builder, x, ids = grown
    builder.lake.delete("frames", "frame_id", [ids[5], ids[20]])
    more = np.stack([near(x[0], 0.5, i) for i in range(30)])
    grow(builder, list(more), 500)
    expected = np.concatenate([np.delete(x, [5, 20], axis=0), more]).astype(np.float16)
    version = builder.lake.dataset("frames").version
    source = VectorSource(builder.lake.root, version, builder.field.name, DIM)
    positions = np.flatnonzero(np.random.default_rng(1).random(len(expected)) < 0.7)
    got = Vectors(source, positions).all()
    np.testing.assert_array_equal(got, expected[positions])
    chunks = cut_chunks(positions, block_rows=16)
    parts = [c.load(source) for c in chunks]
    np.testing.assert_array_equal(np.concatenate([p.x_ND for p in parts]), expected[positions])
    assert [p.start for p in parts] == np.cumsum([0] + [len(p.x_ND) for p in parts])[:-1].tolist()
