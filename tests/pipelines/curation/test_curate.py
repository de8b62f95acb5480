"""A curation as its user meets it: who is dropped and why, the same again for the same data, only the new after that."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipelines.curation import curate, reproduce, selections
from pipelines.curation.recipe import CurationRecipe
from pipelines.lake import Lake
from tests.pipelines.curation.conftest import DIM, LakeBuilder, jpeg, kinds, picture, unit
from vfm_ops.errors import UsageError

ONLY_DUPLICATES = {"cluster": None, "sample": None}


def recipe(**sections) -> CurationRecipe:
    return CurationRecipe.model_validate(sections)


def rows_of(lake: Lake, name: str = "curated") -> dict[str, dict]:
    return {row["frame_id"]: row for row in selections.read_rows(lake, name).to_pylist()}


def apart(count: int, seed: int = 0) -> list[np.ndarray]:
    """Vectors far from each other."""
    return list(unit(np.random.default_rng(seed).standard_normal((count, DIM))))


def test_each_strength_of_deduplication_keeps_the_better_copy_and_names_it(builder):
    x = apart(6)
    big = picture(1, 96)
    exact = builder.stills([picture(0), picture(0)], x[:2])
    perceptual = builder.stills([np.asarray(Image.fromarray(big).resize((48, 48))), big], x[2:4], quality=60)
    near = unit(x[4] + 0.1 * x[5])
    semantic = builder.stills([picture(2), picture(3, 128)], [x[4], near])
    alone = builder.stills([picture(4)], [x[5]])
    curate(builder.lake, recipe(**ONLY_DUPLICATES))
    rows = rows_of(builder.lake)
    assert {i for i, r in rows.items() if r["kept"]} == {exact[0], perceptual[1], semantic[1], alone[0]}
    assert (rows[exact[1]]["kind"], rows[exact[1]]["other"]) == ("exact_duplicate", exact[0])
    assert (rows[perceptual[0]]["kind"], rows[perceptual[0]]["other"]) == ("perceptual_duplicate", perceptual[1])
    assert (rows[semantic[0]]["kind"], rows[semantic[0]]["other"]) == ("semantic_duplicate", semantic[1])
    np.testing.assert_allclose(rows[semantic[0]]["score"], x[4] @ near, atol=2e-3)
    assert rows[semantic[1]]["reason"].startswith("kept: kept for 1 duplicates (resolution")
    assert rows[alone[0]]["reason"] == "kept: passed every step"
    assert sorted(r["rank"] for r in rows.values() if r["kept"]) == [0, 1, 2, 3]


def test_a_flipped_or_turned_copy_is_found_on_request_only(builder):
    x, original = apart(3), picture(7)
    turned = np.ascontiguousarray(np.rot90(original))
    ids = builder.stills([original, turned, np.ascontiguousarray(original[:, ::-1])], x)
    curate(builder.lake, recipe(**ONLY_DUPLICATES, deduplicate={"perceptual": True}), "plain")
    assert all(r["kept"] for r in rows_of(builder.lake, "plain").values())
    curate(
        builder.lake, recipe(**ONLY_DUPLICATES, deduplicate={"perceptual": {"dihedral": True, "radius": 6}}), "turned"
    )
    rows = rows_of(builder.lake, "turned")
    assert [rows[i]["kind"] for i in ids].count("perceptual_duplicate") == 2


def test_a_crop_is_found_by_alignment(builder, photographs):
    pictures = [np.asarray(Image.open(p).convert("RGB").resize((160, 160))) for p in photographs[:4]]
    crop = pictures[0][16:144, 8:136]
    x = apart(4)
    ids = builder.stills([*pictures, crop], [*x, unit(x[0] + 0.4 * x[1])])
    deduplicate = {"exact": False, "aligned": {"candidate_cosine": 0.5}}
    curate(builder.lake, recipe(**ONLY_DUPLICATES, deduplicate=deduplicate))
    rows = rows_of(builder.lake)
    assert {i for i, r in rows.items() if not r["kept"]} == {ids[4]}
    assert rows[ids[4]]["other"] == ids[0]


def test_frames_of_a_partial_video_copy_are_dropped_with_the_span_they_show(builder):
    scenes = [picture(100 + i) for i in range(30)]
    x = apart(45)
    whole = builder.video([*scenes], x[:30])
    part = builder.video(
        [picture(999), picture(998), *[np.asarray(Image.fromarray(p).resize((48, 48))) for p in scenes[10:20]]],
        x[30:42],
    )
    builder.video([picture(500 + i) for i in range(3)], x[42:])
    curate(builder.lake, recipe(**ONLY_DUPLICATES, deduplicate={"exact": False, "video": True}))
    rows = rows_of(builder.lake)
    assert {i for i, r in rows.items() if not r["kept"]} == set(part[2:])
    assert rows[part[5]]["other"] == whole[0].split(":")[0]
    assert rows[part[5]]["reason"].endswith("from 5.0 to 9.5 s")


def test_quality_bounds_drop_with_the_measure_and_the_limit(builder):
    ids = builder.stills([picture(0, smooth=2), picture(1, smooth=32), picture(2, size=16, smooth=16)], apart(3))
    curate(builder.lake, recipe(**ONLY_DUPLICATES, filters={"min_sharpness": 20, "min_side": 32}))
    rows = rows_of(builder.lake)
    assert [rows[i]["kept"] for i in ids] == [False, True, False]
    assert rows[ids[0]]["reason"].startswith("dropped: too blurred (sharpness ")
    assert "limit 32" in rows[ids[2]]["reason"]


def test_near_copies_of_evaluation_sets_go_whether_a_lake_a_selection_or_frames_name_them(builder, tmp_path):
    x = apart(6)
    ids = builder.stills([picture(i) for i in range(6)], x)
    other = LakeBuilder(tmp_path / "exam")
    [exam] = other.stills([picture(50)], [unit(x[1] + 0.05 * x[0])])
    twin = builder.stills([picture(3)], [apart(1, seed=9)[0]])
    decontaminate = {"sets": [str(tmp_path / "exam"), {"frames": [ids[4]]}]}
    summary = curate(builder.lake, recipe(**ONLY_DUPLICATES, deduplicate={"exact": False}, decontaminate=decontaminate))
    rows = rows_of(builder.lake)
    assert {i for i, r in rows.items() if not r["kept"]} == {ids[1], ids[4]}
    assert rows[ids[1]]["reason"] == f"dropped: contaminates exam (item {exam})"
    assert summary.manifest.sets == {"exam": 1, "1 frames": 1}
    decontaminate = {"sets": [{"frames": [ids[3]]}]}
    curate(
        builder.lake, recipe(**ONLY_DUPLICATES, deduplicate={"exact": False}, decontaminate=decontaminate), "by-hash"
    )
    assert not rows_of(builder.lake, "by-hash")[twin[0]]["kept"]  # another vector, the same picture


def test_retrieval_keeps_the_neighbours_of_the_seeds_and_says_which(tailed):
    lake, kind = tailed
    frames = lake.read("frames", ["frame_id"])["frame_id"].to_pylist()
    seeds = [frames[int(np.flatnonzero(kind == k)[0])] for k in (1, 4)]
    plan = recipe(**ONLY_DUPLICATES, deduplicate={"exact": False}, retrieve={"seeds": {"frames": seeds}, "k": 6})
    curate(lake, plan, "retrieved")
    rows = rows_of(lake, "retrieved")
    kept = {i for i, r in rows.items() if r["kept"]}
    assert set(seeds) < kept
    assert {int(kind[frames.index(i)]) for i in kept} == {1, 4}
    assert len(kept) == 12
    assert rows[seeds[0]]["reason"] == f"kept: near seed {seeds[0]} (cosine 1.000)"
    clusters = {"seeds": {"frames": seeds}, "mode": "clusters"}
    curate(lake, recipe(deduplicate={"exact": False}, retrieve=clusters, sample=None, cluster={"levels": [5]}), "whole")
    whole = rows_of(lake, "whole")
    reached = {tuple(whole[s]["cluster"]) for s in seeds}
    assert all(r["kept"] == (tuple(r["cluster"]) in reached) for r in whole.values())
    assert 12 <= sum(r["kept"] for r in whole.values()) < len(frames)


def test_a_sample_is_balanced_over_kinds_that_are_not(tailed):
    lake, kind = tailed
    curate(lake, recipe(cluster={"levels": [24, 5]}, sample=100, deduplicate={"exact": False}), "balanced")
    rows = rows_of(lake, "balanced")
    frames = lake.read("frames", ["frame_id"])["frame_id"].to_pylist()
    share = np.bincount(kind[[rows[f]["kept"] for f in frames]], minlength=5) / 100
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(5)
    natural = np.bincount(kind) / len(kind)
    assert entropy > 0.9 > -(natural * np.log(natural)).sum() / np.log(5)
    assert len(rows) == len(frames)
    assert all(len(r["cluster"]) == 2 for r in rows.values())
    kept = next(r for r in rows.values() if r["kept"])
    assert kept["reason"].startswith("kept: stands for cluster " + "/".join(map(str, kept["cluster"])))
    first = {r["frame_id"] for r in rows.values() if r["rank"] is not None and r["rank"] < 20}
    assert len({rows[f]["cluster"][-1] for f in first}) == 20  # a prefix is balanced too


def test_pruning_drops_what_a_cluster_says_already(builder):
    x = unit(np.random.default_rng(3).standard_normal((4, DIM)))
    vectors = [unit(x[i // 5] + 0.15 * v) for i, v in enumerate(apart(20, seed=5))]
    builder.stills([picture(i) for i in range(20)], vectors)
    plan = recipe(deduplicate={"exact": False}, cluster={"levels": [4]}, prune={"cosine": 0.93}, sample=None)
    curate(builder.lake, plan)
    rows = list(rows_of(builder.lake).values())
    dropped = [r for r in rows if r["kind"] == "redundant"]
    assert 10 <= len(dropped) <= 16
    by_id = {r["frame_id"]: r for r in rows}
    assert all(by_id[r["other"]]["cluster"] == r["cluster"] and r["score"] > 0.93 for r in dropped)


def test_the_same_lake_recipe_and_seed_give_identical_rows_for_any_workers_on_ray_too(tailed, ray_local):
    lake, _ = tailed
    plan = {"cluster": {"levels": [30, 5]}, "sample": 120, "seed": 3}
    tables = []
    for resources in ({"workers": 1}, {"workers": 3}, {"backend": "ray", "workers": 2}):
        curate(lake, recipe(**plan, resources=resources), "same", full=True)
        tables.append(
            selections.read_rows(lake, "same").drop_columns("generation").sort_by("frame_id").combine_chunks()
        )
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    curate(lake, recipe(**plan | {"seed": 4}), "same")
    assert not selections.read_rows(lake, "same").drop_columns("generation").sort_by("frame_id").equals(tables[0])


def test_a_second_run_decides_new_items_only_and_says_what_changed(builder):
    x, _ = kinds([60, 20], seed=2)
    first = builder.stills([picture(i) for i in range(80)], list(x))
    plan = recipe(cluster={"levels": [8]}, sample=24)
    curate(builder.lake, plan)
    before = rows_of(builder.lake)
    assert curate(builder.lake, plan).unchanged
    rare = unit(np.ones(DIM) * np.array([1, -1] * (DIM // 2)))
    new = builder.stills([picture(3), picture(500), picture(501)], [apart(1, 8)[0], unit(x[5] + 0.01), rare])
    summary = curate(builder.lake, plan)
    after = rows_of(builder.lake)
    assert {i: {k: v for k, v in r.items() if k != "generation"} for i, r in after.items() if i in before} == {
        i: {k: v for k, v in r.items() if k != "generation"} for i, r in before.items()
    }
    assert summary.manifest.mode == "incremental"
    assert summary.manifest.changes["new"] == 3
    assert summary.manifest.changes["untouched"] == 80
    assert (after[new[0]]["kind"], after[new[0]]["other"]) == ("exact_duplicate", first[3])
    assert (after[new[1]]["kind"], after[new[1]]["other"]) == ("semantic_duplicate", first[5])
    assert len(after) == 83
    assert reproduce(builder.lake, "curated") == (True, summary.manifest)


def test_when_what_an_item_was_dropped_for_leaves_the_lake_the_item_is_decided_again(builder):
    x = apart(3)
    ids = builder.stills([picture(0, 96), picture(1)], [x[0], x[1]])
    copy = builder.stills([picture(0, 96)], [x[2]])
    plan = recipe(**ONLY_DUPLICATES)
    curate(builder.lake, plan)
    assert not rows_of(builder.lake)[copy[0]]["kept"]
    builder.lake.delete("frames", "frame_id", [ids[0]])
    summary = curate(builder.lake, plan)
    assert {i: r["kept"] for i, r in rows_of(builder.lake).items()} == {ids[1]: True, copy[0]: True}
    assert summary.manifest.changes["removed"] == 1


def test_a_selection_is_reproduced_from_its_manifest_after_the_lake_went_on(builder):
    x, _ = kinds([30, 10], seed=4)
    builder.stills([picture(i) for i in range(40)], list(x))
    first = curate(builder.lake, recipe(cluster={"levels": [6]}, sample=12))
    builder.stills([picture(900)], apart(1, 5))
    builder.lake.dataset("frames").optimize.compact_files()
    same, manifest = reproduce(builder.lake, "curated")
    assert same
    assert manifest.key == first.manifest.key
    ds = builder.lake.dataset("selections", "curated.g1")
    assert ds.count_rows() == 40
    assert builder.lake.dataset("frames", "curated.g1").count_rows() == 40


def test_the_rows_of_other_selections_stay_when_one_is_replaced(builder):
    builder.stills([picture(i) for i in range(8)], apart(8))
    curate(builder.lake, recipe(**ONLY_DUPLICATES), "one")
    curate(builder.lake, recipe(**ONLY_DUPLICATES, seed=1), "two")
    builder.lake.dataset("selections").optimize.compact_files()  # both in one fragment now
    one = selections.read_rows(builder.lake, "one").sort_by("frame_id")
    curate(builder.lake, recipe(**ONLY_DUPLICATES, seed=2), "two")
    assert selections.read_rows(builder.lake, "one").sort_by("frame_id").equals(one)
    assert builder.lake.count("selections") == 16
    assert selections.list_selections(builder.lake) == ["one", "two"]
    assert selections.kept_frames(builder.lake, "two")["rank"].to_pylist() == list(range(8))


class Stop(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("place", ["replace_rows", "pin", "write_file", "remove_file"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_killed_at_any_write_the_next_run_ends_at_the_identical_selection(builder, tmp_path, monkeypatch, place, call):
    x, _ = kinds([20, 8], seed=6)
    builder.stills([picture(i) for i in range(28)], list(x))
    plan = recipe(cluster={"levels": [4]}, sample=8)
    shutil.copytree(builder.lake.root, tmp_path / "undisturbed")
    calm = Lake.open(tmp_path / "undisturbed")
    curate(calm, plan)
    calls = []
    honest = getattr(selections, place)

    def deadly(*args):
        calls.append(args)
        if len(calls) == call + 1:
            raise Stop
        return honest(*args)

    with monkeypatch.context() as patch:
        patch.setattr(selections, place, deadly)
        try:
            curate(builder.lake, plan)
        except Stop:
            assert len(calls) == call + 1
    curate(builder.lake, plan)
    rows = [selections.read_rows(lake, "curated").sort_by("frame_id").to_pylist() for lake in (calm, builder.lake)]
    strip = [[{k: v for k, v in r.items() if k != "generation"} for r in table] for table in rows]
    assert strip[0] == strip[1]
    assert builder.lake.count("selections") == 28
    assert reproduce(builder.lake, "curated")[0]


def test_unusable_vectors_are_refused_by_name_or_dropped_on_request(builder):
    x = apart(5)
    ids = builder.stills([picture(i) for i in range(5)], [x[0], x[1] * np.nan, x[2] * 0, None, x[4]])
    with pytest.raises(UsageError, match=f"2 of 5 vectors .* frame {ids[1]}, holds NaN"):
        curate(builder.lake, recipe(**ONLY_DUPLICATES))
    curate(builder.lake, recipe(**ONLY_DUPLICATES, bad_vectors="drop"))
    rows = rows_of(builder.lake)
    assert [rows[i]["kept"] for i in ids] == [True, False, False, False, True]
    assert rows[ids[3]]["reason"] == "dropped: has no usable vector"


def test_what_cannot_be_curated_is_refused_before_anything_is_written(builder, tmp_path):
    lake = builder.lake
    with pytest.raises(UsageError, match="has no frames yet"):
        curate(lake, recipe())
    builder.stills([picture(i) for i in range(10)], apart(10))
    for sections, message in (
        ({"cluster": {"levels": [50]}, "sample": None}, "50 clusters were asked for, but only 10 items are left"),
        ({"sample": 11}, "a sample of 11 was asked for, but of 10 items only 10 are left"),
        ({"column": "clip:none"}, "no column of clip:none"),
        ({"where": "colour = 'red'"}, "unknown column colour"),
        ({"where": "width > 5000"}, "no frame of .* satisfies"),
        ({"retrieve": {"seeds": {"selection": "none"}}}, "has no selection 'none'"),
        ({"decontaminate": {"sets": [{"folder": "/nowhere"}]}}, "/nowhere is no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            curate(lake, recipe(**sections))
    for digest, dim, message in (("d2", DIM, "embedded by model d2"), ("d1", 8, "vectors of dimension 8")):
        other = LakeBuilder(tmp_path / f"seeds-{digest}-{dim}", digest=digest, dim=dim)
        other.stills([picture(0)], [np.ones(dim)])
        with pytest.raises(UsageError, match=message):
            curate(lake, recipe(retrieve={"seeds": {"lake": other.lake.root}}))
    with pytest.raises(UsageError, match="can't name a selection"):
        curate(lake, recipe(), "a b")
    assert selections.list_selections(lake) == []
    assert not lake.count("selections")


def test_a_folder_of_pictures_as_evaluation_set_is_embedded_by_the_columns_own_model(
    builder, tmp_path, tiny_model, photographs
):
    from vfm_ops.embed import load_embedder

    embedder = load_embedder(tiny_model)
    pictures = [np.asarray(Image.open(p).convert("RGB").resize((64, 64))) for p in photographs[:3]]
    views = np.stack([embedder.view.apply(p) for p in pictures])
    own = LakeBuilder(tmp_path / "own", digest=embedder.digest, spec=tiny_model, dim=embedder.dim)
    ids = own.stills(pictures, list(embedder.embed_images(views)))
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "one.jpg").write_bytes(jpeg(pictures[1], 60))
    (tmp_path / "exam" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    decontaminate = {"sets": [str(tmp_path / "exam")], "cosine": 0.999}
    plan = recipe(**ONLY_DUPLICATES, deduplicate={"exact": False}, decontaminate=decontaminate)
    curate(own.lake, plan)
    rows = rows_of(own.lake)
    assert not rows[ids[1]]["kept"]
    assert rows[ids[1]]["reason"] == "dropped: contaminates exam (item one.jpg)"


def test_tally_and_rows_agree(tailed):
    lake, _ = tailed
    summary = curate(lake, recipe(cluster={"levels": [20]}, sample=0.25), "tally")
    kinds_of = selections.read_rows(lake, "tally")["kind"]
    counts = {v["values"]: v["counts"] for v in pc.value_counts(kinds_of).to_pylist()}
    assert summary.manifest.tally == counts
    assert summary.manifest.kept == counts["balanced"]
    assert sum(counts.values()) == summary.manifest.items == 480
