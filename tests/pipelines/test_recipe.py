"""A wrong recipe is refused before anything runs, in a sentence that names the key at fault; hashes decide what re-runs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe import Recipe, load_recipe, validate
from pipelines.units import cut_units
from vfm_ops.errors import UsageError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"samplng": {}}, "unknown key samplng; did you mean sampling"),
        ({"sampling": {"fsp": 1}}, "unknown key sampling.fsp; did you mean fps"),
        ({"embed": [{"model": "clip:x", "dtpye": "float16"}]}, "unknown key embed.0.dtpye; did you mean dtype"),
        ({"sampling": {"fps": 0}}, "sampling.fps: Input should be greater than 0"),
        ({"track": True}, "track needs detect"),
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
        (None, ["phash.x=1"], "phash|unknown key"),
    ):
        with pytest.raises(UsageError, match=message):
            load_recipe(path and str(tmp_path / path), overrides)


def test_the_hash_changes_with_what_changes_rows_and_with_nothing_else():
    base = validate(Recipe, {}, "")
    same = ({"embed": "clip:x"}, {"resources": {"actors": 3}}, {"decode": {"decoder": "pyav"}})
    other = ({"sampling": {"fps": 2}}, {"phash": False}, {"shots": {"detector": "content"}}, {"detect": "person"})
    assert all(validate(Recipe, d, "").hash == base.hash for d in same)
    assert len({validate(Recipe, d, "").hash for d in other} | {base.hash}) == len(other) + 1


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
