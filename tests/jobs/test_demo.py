"""If these fail, the first thing that a newcomer runs stops half way, or deletes their files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from jobs import demo
from pipelines.process.recipe import Recipe
from pipelines.settings import validate
from tests.conftest import default_weights, package_dir
from vfm_ops.embed import load_embedder
from vfm_ops.errors import UsageError
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.world.vocabulary import COLOURS

ROOT = Path(__file__).parents[2]


def test_its_recipe_asks_for_every_colour_with_the_models_that_ship():
    recipe = validate(Recipe, yaml.safe_load(demo.WORLD_RECIPE + demo.TRACKING), "the demo's recipe")
    given = {name: value for op in recipe.ops if isinstance(op, dict) for name, value in op.items()}
    assert given["detect"]["prompts"].split(" . ") == [f"{colour} thing" for colour in COLOURS]
    assert given["embed"] == "clip:pocket"
    assert (given["detect"]["model"], given["track"]["model"]) == ("owlvit:pocket", "sam2:pocket")
    assert given["track"]["prompts"] == given["detect"]["prompts"]


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


def test_its_first_picture_shows_animals_like_the_one_that_was_asked_for(tmp_path):
    """Of all the demo's stills, the three nearest to its query are the other animals' portraits."""
    default_weights()
    for package in demo.MEDIA:
        package_dir(package)
    demo.build_corpus(tmp_path)
    pictures = {p: picture for p in sorted(tmp_path.rglob("*.*")) if (picture := cv2.imread(str(p))) is not None}
    embedder = load_embedder(DEFAULT_EMBEDDER, device="cpu")
    views = np.stack([embedder.view.apply(np.ascontiguousarray(p[..., ::-1])) for p in pictures.values()])
    vectors, names = embedder.embed_images(views), [p.name for p in pictures]
    scores = vectors @ vectors[names.index(demo.query_of(tmp_path).name)]
    assert len(names) > 40
    assert {names[i] for i in np.argsort(-scores)[1:4]} == {"lion.jpg", "cheetah.jpg", "quokka.jpg"}


def test_it_runs_whole_where_nothing_else_is_installed(tmp_path):
    """As `make demo` on a new machine: the product, the media, and none of the extras that these tests have."""
    default_weights()
    for package in demo.MEDIA:
        package_dir(package)
    hiding = {"VFM_TESTS_HIDE": "debian,extras", "PYTHONPATH": f"{ROOT / 'tests' / 'hiding'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "jobs.cli", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, env=os.environ | hiding, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "vfm eval says: pip install" in done.stdout
    for name in ("search.jpg", "text-search.jpg", "detections.jpg", "tracks.mp4"):
        assert (tmp_path / "demo" / name).stat().st_size > 10_000, name


def test_where_a_package_lacks_the_usual_query_another_picture_is_searched_for(tmp_path):
    (tmp_path / "perception").mkdir()
    (tmp_path / "perception" / "b.jpg").touch()
    assert demo.query_of(tmp_path).name == "b.jpg"
    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage" / "chelsea.png").touch()
    assert demo.query_of(tmp_path).name == "chelsea.png"
