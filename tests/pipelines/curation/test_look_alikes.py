"""Deduplication of look-alikes: what a user would lose if a picture went for another that it is no copy of."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipelines.curation import curate, reproduce, selections
from pipelines.curation.recipe import CurationRecipe
from pipelines.lake import Lake
from tests.pipelines.curation.conftest import DIM, LakeBuilder, picture, unit
from tests.vfm_ops.curate.test_looks import plain_pictures

ONLY_DUPLICATES = {"cluster": None, "sample": None}


def recipe(**deduplicate) -> CurationRecipe:
    return CurationRecipe.model_validate({**ONLY_DUPLICATES, "deduplicate": deduplicate})


def rows_of(lake: Lake) -> dict[str, dict]:
    return {row["frame_id"]: row for row in selections.read_rows(lake, "curated").to_pylist()}


def facts(lake: Lake) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Hash and vector of each frame."""
    rows = lake.read("frames").to_pylist()
    column = next(name for name in rows[0] if name.startswith("emb_"))
    return {r["frame_id"]: r["phash"] for r in rows}, {r["frame_id"]: unit(np.float64(r[column])) for r in rows}


def assert_each_drop_is_near_what_stays(lake: Lake, radius: int = 4, cosine: float = 0.95) -> int:
    """Every duplicate names an item that no later step dropped, and lies within the threshold of it. Returns how many."""
    rows, (hashes, vectors) = rows_of(lake), facts(lake)
    count = 0
    for name, row in rows.items():
        if row["kind"] in ("perceptual_duplicate", "semantic_duplicate"):
            assert rows[row["other"]]["kept"]
            bits = (hashes[name] ^ hashes[row["other"]]).bit_count()
            near = float(vectors[name] @ vectors[row["other"]])
            assert bits <= radius if row["kind"] == "perceptual_duplicate" else near >= cosine - 2e-3
            np.testing.assert_allclose(row["score"], bits if row["kind"] == "perceptual_duplicate" else near, atol=3e-3)
            count += 1
    return count


def arc(count: int, step: float) -> list[np.ndarray]:
    """Unit vectors along an arc, `step` radians apart."""
    basis = np.eye(DIM)[:2]
    return [np.cos(step * i) * basis[0] + np.sin(step * i) * basis[1] for i in range(count)]


def alone(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(unit(np.random.default_rng(seed).standard_normal((count, DIM))))


def drifting(count: int) -> list[np.ndarray]:
    """Pictures of which each is a little different from the last, until the first and the last have nothing in common."""
    a, b = picture(0).astype(float), picture(1).astype(float)
    return [np.uint8(np.rint(a + (b - a) * i / (count - 1))) for i in range(count)]


@pytest.mark.parametrize("measured", [True, False])
def test_plain_pictures_that_differ_all_stay_though_hash_and_vector_call_them_one(builder, measured):
    pictures = list(plain_pictures().values())
    ids = builder.stills(pictures, [np.ones(DIM)] * len(pictures))
    copies = builder.stills([pictures[0], pictures[-1], pictures[-4]], [np.ones(DIM)] * 3, quality=60)
    if not measured:  # as with quality.measure=false
        builder.lake.dataset("frames").update({"quality": "NULL"})
    curate(builder.lake, recipe(perceptual=True, semantic=True, keep=["oldest"]))
    rows = rows_of(builder.lake)
    assert [name for name, i in zip(plain_pictures(), ids) if not rows[i]["kept"]] == []
    assert [rows[i]["other"] for i in copies] == [ids[0], ids[-1], ids[-4]]


def test_plain_pictures_that_were_not_stored_are_never_called_copies(builder):
    builder.stills([np.full((64, 64, 3), c, np.uint8) for c in (0, 200)], [np.ones(DIM)] * 2)
    builder.lake.dataset("frames").update({"jpeg": "NULL"})
    curate(builder.lake, recipe(perceptual=True, semantic=True))
    assert all(r["kept"] for r in rows_of(builder.lake).values())


def test_another_colour_is_another_picture_for_the_hash_alone_too(builder):
    image = picture(3)
    dyed = np.ascontiguousarray(image[..., ::-1])
    ids = builder.stills([image, dyed, image], alone(3), quality=80)
    curate(builder.lake, recipe(exact=False, perceptual={"radius": 31}))
    rows = rows_of(builder.lake)
    assert [rows[i]["kept"] for i in ids] == [True, True, False]


def test_a_drift_of_pictures_keeps_one_for_each_stretch_that_it_resembles(builder):
    builder.stills(drifting(60), alone(60))
    curate(builder.lake, recipe(exact=False, perceptual=True))
    dropped = assert_each_drop_is_near_what_stays(builder.lake)
    hashes, _ = facts(builder.lake)
    steps = [(a ^ b).bit_count() for a, b in pairwise(hashes.values())]
    assert max(steps) <= 4  # one connected component
    assert 20 < dropped < 59


def test_a_drift_of_vectors_keeps_one_for_each_stretch_also_over_two_runs(builder):
    step = 0.2  # cosine 0.98 between neighbours, 0.92 two apart
    pictures = [picture(i) for i in range(24)]
    vectors = arc(24, step)
    builder.stills(pictures[:12], vectors[:12])
    plan = recipe(semantic=True, keep=["oldest"])
    curate(builder.lake, plan)
    assert [r["kept"] for r in rows_of(builder.lake).values()] == [True, False] * 6
    before = rows_of(builder.lake)
    builder.stills(pictures[12:], vectors[12:])
    curate(builder.lake, plan)
    after = rows_of(builder.lake)
    assert {i: after[i]["other"] for i in before} == {i: r["other"] for i, r in before.items()}
    assert assert_each_drop_is_near_what_stays(builder.lake) >= 10
    assert reproduce(builder.lake, "curated")[0]


def test_what_a_later_step_drops_stands_for_nothing(builder):
    """b goes for the larger c by its vector; a and d had gone for b by their pictures, and only d is near c as well."""
    vectors = arc(4, 0.25)
    base, large = picture(5, 96), picture(6, 160)
    small = [np.asarray(Image.fromarray(base).resize((s, s), Image.Resampling.BICUBIC)) for s in (64, 72)]
    a, d, b, c = builder.stills([small[0], small[1], base, large], [vectors[0], vectors[2], vectors[1], vectors[2]])
    curate(builder.lake, recipe(perceptual={"radius": 6}, semantic=True))
    rows = rows_of(builder.lake)
    assert (rows[c]["kept"], rows[b]["other"], rows[d]["other"]) == (True, c, c)
    assert rows[a]["kept"]
    assert rows[c]["reason"].startswith("kept: kept for 2 duplicates")
    assert_each_drop_is_near_what_stays(builder.lake, radius=6)


def test_a_frame_that_the_better_video_does_not_show_stays_inside_a_copied_segment(builder):
    scenes = [picture(100 + i) for i in range(24)]
    whole = builder.video(scenes, alone(24))
    small = [np.asarray(Image.fromarray(p).resize((48, 48))) for p in scenes]
    small[11], small[12] = picture(998, 48), np.full((48, 48, 3), 30, np.uint8)
    copy = builder.video(small, alone(24, 1))
    curate(builder.lake, recipe(exact=False, video=True))
    rows = rows_of(builder.lake)
    assert [i for i in whole if not rows[i]["kept"]] == []
    assert [i for i in copy if rows[i]["kept"]] == [copy[11], copy[12]]


def test_what_a_third_video_took_the_place_of_stands_for_no_frame(builder):
    """a is a copy of b's first half and c of its second: with b gone for the larger d in its first half, c still goes for b."""
    scenes = [picture(100 + i, 64) for i in range(24)]

    def sized(frames: list[np.ndarray], side: int) -> list[np.ndarray]:
        return [np.asarray(Image.fromarray(p).resize((side, side))) for p in frames]

    b = builder.video(scenes, alone(24))
    c = builder.video(sized(scenes[12:], 48), alone(12, 1))
    d = builder.video(sized(scenes[:12], 96), alone(12, 2))
    a = builder.video(sized(scenes[:12], 40), alone(12, 3))
    curate(builder.lake, recipe(exact=False, video=True))
    rows = rows_of(builder.lake)
    assert all(rows[i]["kept"] for i in (*d, *b[12:]))
    assert {rows[i]["other"] for i in (*a, *b[:12])} == {d[0].split(":")[0]}
    assert {rows[i]["other"] for i in c} == {b[0].split(":")[0]}


def test_pruning_drops_an_item_only_for_one_that_stays(tmp_path):
    builder = LakeBuilder(tmp_path / "prune")
    builder.stills([picture(i) for i in range(12)], arc(12, 0.2))
    plan = {"deduplicate": {"exact": False}, "cluster": {"levels": [1]}, "prune": {"cosine": 0.95}, "sample": None}
    curate(builder.lake, CurationRecipe.model_validate(plan))
    rows = rows_of(builder.lake)
    dropped = [r for r in rows.values() if r["kind"] == "redundant"]
    assert len(dropped) >= 4
    assert all(rows[r["other"]]["kept"] and r["score"] > 0.95 for r in dropped)
