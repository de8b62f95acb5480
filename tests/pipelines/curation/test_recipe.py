"""The curation recipe: what a user may write, and what is said of what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.curation.recipe import CurationRecipe, load_curation_recipe
from vfm_ops.errors import UsageError

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"


def test_the_documented_recipe_is_the_default_one_with_every_key_written_out():
    documented = yaml.safe_load((RECIPES / "curate.yaml").read_text())
    assert load_curation_recipe(str(RECIPES / "curate.yaml")) == CurationRecipe() == load_curation_recipe(None)
    assert list(documented) == [*(k for k in CurationRecipe.model_fields if k in documented)]
    assert set(documented) == set(CurationRecipe.model_fields)
    for section in ("filters", "deduplicate", "cluster", "sample", "resources"):
        assert set(documented[section]) == set(getattr(CurationRecipe(), section).model_dump())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dedup": {}}, "unknown key dedup; did you mean deduplicate?"),
        ({"cluster": {"level": [3]}}, "unknown key cluster.level; did you mean levels?"),
        (
            {"deduplicate": {"perceptual": {"radios": 3}}},
            "unknown key deduplicate.perceptual.radios; did you mean radius?",
        ),
        ({"sample": {"target": 1.5}}, "target must be a number of items, or a share between 0 and 1"),
        ({"sample": 0}, "target must be a number of items"),
        ({"cluster": None}, "sample needs clusters"),
        ({"deduplicate": {"semantic": {"cosine": 1.2}}}, "deduplicate.semantic.cosine: Input should be less than"),
        ({"decontaminate": {"sets": [{"folder": "a", "lake": "b"}]}}, "name a folder, or a lake"),
        ({"seed": "x"}, "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_the_key(tmp_path, data, message):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError) as refused:
        load_curation_recipe(str(tmp_path / "r.yaml"))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_short_forms_and_overrides_say_the_same_as_the_long_ones(tmp_path):
    short = load_curation_recipe(
        None,
        ["sample=2000", "deduplicate.video=true", "deduplicate.perceptual=false", "retrieve.seeds=selection:seeds"],
    )
    long = CurationRecipe.model_validate(
        {
            "sample": {"target": 2000},
            "deduplicate": {"video": {}, "perceptual": None},
            "retrieve": {"seeds": {"selection": "seeds"}},
        }
    )
    assert short == long
    assert load_curation_recipe(None, [f"retrieve.seeds={tmp_path}"]).retrieve.seeds.folder == str(tmp_path)
    (tmp_path / "lake.json").write_text("{}")
    assert load_curation_recipe(None, [f"retrieve.seeds={tmp_path}"]).retrieve.seeds.lake == str(tmp_path)


def test_the_hash_knows_what_changes_the_selection_and_nothing_else():
    assert CurationRecipe.model_validate({"resources": {"workers": 7}}).hash == CurationRecipe().hash
    assert CurationRecipe.model_validate({"seed": 1}).hash != CurationRecipe().hash
    assert CurationRecipe.model_validate(yaml.safe_load(CurationRecipe().to_yaml())) == CurationRecipe()
