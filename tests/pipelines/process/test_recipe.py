"""A wrong recipe is refused before anything runs, in a sentence that names the key at fault; hashes decide what re-runs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.process.recipe import Recipe, load_recipe
from pipelines.process.units import cut_units
from pipelines.settings import validate
from vfm_ops.errors import UsageError
from vfm_ops.media.limits import Limits
from vfm_ops.media.quality import frame_quality, quality_gray
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.ops.quality import Quality


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"samplng": {}}, "unknown key samplng; did you mean sampling"),
        ({"sampling": {"fsp": 1}}, "unknown key sampling.fsp; did you mean fps"),
        ({"embed": [{"model": "clip:x", "dtpye": "float16"}]}, "op embed has no setting dtpye: did you mean dtype"),
        ({"sampling": {"fps": 0}}, "sampling.fps: Input should be greater than 0"),
        ({"track": True}, "track needs detect"),
        ({"ops": ["track_boxes"]}, "track_boxes needs detect"),
        ({"embde": "clip:x"}, "unknown key embde; did you mean embed"),
        ({"ops": ["qualty"]}, "there is no op 'qualty': did you mean quality"),
        ({"detect": {"prompts": "a", "as": "no name"}}, "op detect: as: 'no name' is no name"),
        ({"sampling": {"mode": "per_shot"}}, "per_shot needs shots"),
        ({"detect": "person", "jpeg": {"store": False}}, "detect needs the stored frames"),
    ],
)
def test_a_wrong_key_or_value_is_named(data, message):
    with pytest.raises(UsageError, match=message):
        validate(Recipe, data, "recipe.yaml")


def test_files_and_overrides_are_refused_with_a_reason(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "bad.yaml").write_text("a: [")
    for path, overrides, message in (
        ("none.yaml", [], "there is no recipe"),
        ("list.yaml", [], "not a mapping"),
        ("bad.yaml", [], "cannot read"),
        (None, ["fps"], "key=value"),
        (None, ["phash.x=1"], "op phash has no setting x"),
    ):
        with pytest.raises(UsageError, match=message):
            load_recipe(path and str(tmp_path / path), overrides)


def test_the_hash_changes_with_what_changes_rows_and_with_nothing_else():
    base = validate(Recipe, {}, "")
    same = ({"embed": "clip:x"}, {"resources": {"actors": 3}}, {"decode": {"decoder": "pyav"}}, {"detect": "person"})
    other = ({"sampling": {"fps": 2}}, {"jpeg": {"quality": 80}}, {"shots": {"detector": "content"}})
    assert all(validate(Recipe, d, "").hash == base.hash for d in same)
    assert len({validate(Recipe, d, "").hash for d in other} | {base.hash}) == len(other) + 1


@pytest.mark.parametrize(
    ("data", "ops"),
    [
        ({}, ["quality", "phash"]),
        ({"ops": []}, []),
        ({"embed": "a:b"}, ["quality", "phash", {"embed": "a:b"}]),
        (
            {"embed": ["a:b", {"model": "c:d"}], "phash": False},
            ["quality", {"embed": "a:b"}, {"embed": {"model": "c:d"}}],
        ),
        ({"ops": [{"embed": "a:b"}, "phash"], "embed": "c:d"}, [{"embed": "c:d"}, "phash"]),
        ({"ops": ["phash"], "quality": {"measure": False}}, ["phash"]),
        ({"ops": [], "quality": {"measure": True, "min_contrast": 0.1}}, [{"quality": {"min_contrast": 0.1}}]),
        (
            {"ops": [], "detect": "a .", "track": True},
            [{"detect": "a ."}, {"track": {"prompts": "a ."}}],
        ),
        (
            {"ops": [{"detect": {"prompts": "a .", "threshold": 0.2}}, {"track": {"chunk_frames": 8}}]},
            [
                {"detect": {"prompts": "a .", "threshold": 0.2}},
                {"track": {"prompts": "a .", "threshold": 0.2, "chunk_frames": 8}},
            ],
        ),
        (
            {"ops": [{"detect": {"prompts": "a .", "tiles": {"size": 64}}}, "track_boxes"]},
            [
                {"detect": {"prompts": "a .", "tiles": {"size": 64}}},
                {"track_boxes": {"prompts": "a .", "tiles": {"size": 64}}},
            ],
        ),
    ],
)
def test_a_key_that_is_an_ops_name_is_short_for_that_op(data, ops):
    assert list(validate(Recipe, data, "").ops) == ops


@pytest.mark.parametrize(
    ("overrides", "ops"),
    [
        (["embed=[]"], ["quality", "phash"]),
        (["detect.prompts=a .", "embed=[]"], ["quality", "phash", {"detect": {"prompts": "a ."}}]),
        (["embed.dtype=float32"], ["quality", "phash", {"embed": {"model": DEFAULT_EMBEDDER, "dtype": "float32"}}]),
        (["quality.min_contrast=0.1", "embed=[]"], [{"quality": {"min_contrast": 0.1}}, "phash"]),
        (["ops=[phash]"], ["phash"]),
    ],
)
def test_an_override_changes_the_op_that_it_names(overrides, ops):
    assert list(load_recipe(None, overrides).ops) == ops


def test_a_recipe_survives_its_own_yaml(tmp_path):
    recipe = validate(Recipe, {"embed": ["clip:x", {"model": "timm:y", "dtype": "float32"}], "detect": "a . b ."}, "")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe


@given(st.lists(st.tuples(st.sampled_from(["image", "video", None]), st.integers(0, 1 << 32)), max_size=200))
def test_units_hold_every_asset_once_and_in_order(assets):
    kinds, sizes = [k for k, _ in assets], [s for _, s in assets]
    rows = {"_rowid": pa.array(range(len(assets)), pa.uint64()), "media_type": pa.array(kinds, pa.string())}
    batch = pa.RecordBatch.from_pydict({**rows, "size": pa.array(sizes, pa.int64())})
    units = list(cut_units([batch], first=4, largest=64))
    assert [r for u in units for r in u["row_id"].to_pylist()] == list(range(len(assets)))
    assert all(u.num_rows for u in units)
    plain = {
        "media_type": pa.array(["image"] * len(assets), pa.string()),
        "size": pa.array([0] * len(assets), pa.int64()),
    }
    stills = [u.num_rows for u in cut_units([pa.RecordBatch.from_pydict({"_rowid": rows["_rowid"], **plain})], 4, 64)]
    assert stills[:-1] == [min(4 * 2**i, 64) for i in range(len(stills) - 1)]
    assert np.sum(stills) == len(assets)


@given(st.lists(st.integers(0, 1 << 26), max_size=120), st.integers(1, 40), st.sampled_from([(4.0, 64.0), (0.0, 0.0)]))
def test_units_are_those_of_a_walk_over_the_assets_however_they_come(sizes, at_a_time, budgets):
    first, largest = budgets
    costs = [1 + size / (1 << 22) for size in sizes]
    expected, filled, budget = [0] * bool(sizes), 0.0, first
    for cost in costs:
        if expected[-1] and filled + cost > budget:
            expected, filled, budget = [*expected, 0], 0.0, min(2 * budget, largest)
        expected[-1] += 1
        filled += cost
    columns = {"media_type": pa.array(["image"] * len(sizes)), "size": pa.array(sizes, pa.int64())}
    table = pa.table({"_rowid": pa.array(range(len(sizes)), pa.uint64()), **columns})
    units = list(cut_units(table.to_batches(at_a_time), first, largest))
    assert [u.num_rows for u in units] == expected
    assert np.allclose([c for u in units for c in u["cost"].to_pylist()], costs)


def test_quality_bounds_are_in_the_units_that_frames_are_measured_in():
    """A bound of 40 for luminance, meant for 0 to 255, would drop every frame there is."""
    white = frame_quality(quality_gray(np.full((32, 32, 3), 255, np.uint8)))
    noise = frame_quality(
        quality_gray(np.random.default_rng(0).choice([0, 255], (256, 256, 1)).astype(np.uint8).repeat(3, 2))
    )
    for measured in (white, noise):
        loosest = {"min_luminance": 0, "max_luminance": 1, "min_contrast": 0, "min_entropy": 0, "min_sharpness": 0}
        assert Quality(**loosest).keep(quality=[measured]) == [None]
    assert Quality(min_contrast=0.49).keep(quality=[noise]) == [None]
    assert Quality(max_luminance=0.99).keep(quality=[white]) == ["luminance above 0.99"]
    for key, value in (("min_luminance", 40), ("max_luminance", 250), ("min_contrast", 20), ("min_entropy", 9)):
        with pytest.raises(UsageError, match=f"op quality, setting {key}: it should be less than or equal to"):
            validate(Recipe, {"quality": {key: value}}, "")


def test_every_decoder_of_a_run_has_the_limits_of_the_recipe_and_the_recipe_those_of_the_library():
    from pipelines.process.decode import DecodeAssets
    from pipelines.process.videos import video_decoding

    assert Recipe().decode.limits() == Limits()
    own = {
        "max_duration_s": 3600,
        "max_pixels": 1000,
        "max_side": 99,
        "memory_mb": 512,
        "max_bytes": 77,
        "deadline_s": 5,
    }
    recipe = validate(Recipe, {"decode": own, "detect": "person", "track": True}, "")
    assert DecodeAssets(recipe, {}, 1).sandbox.settings.limits == video_decoding(recipe).limits == Limits(**own)
