"""If these fail, the first thing that a newcomer runs stops half way, or deletes their files."""

from __future__ import annotations

import pytest
import yaml

from jobs import demo
from pipelines.recipe import Recipe, validate
from vfm_ops.errors import UsageError
from vfm_ops.world.vocabulary import COLOURS


def test_its_recipe_asks_for_every_colour_with_the_models_that_ship():
    recipe = validate(Recipe, yaml.safe_load(demo.WORLD_RECIPE + demo.TRACKING), "the demo's recipe")
    assert recipe.detect is not None
    assert recipe.track is not None
    assert recipe.detect.prompts.split(" . ") == [f"{colour} thing" for colour in COLOURS]
    assert {recipe.embed[0].model, recipe.detect.model, recipe.track.model} == {
        "clip:pocket",
        "owlvit:pocket",
        "sam2:pocket",
    }


def test_it_empties_its_own_folder_and_no_other(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="--out"):
        demo._fresh(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    own = tmp_path / "demo"
    demo._fresh(own)
    (own / "old.jpg").touch()
    demo._fresh(own)
    assert [p.name for p in own.iterdir()] == [demo.MARKER]
