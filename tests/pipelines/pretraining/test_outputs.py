"""What a run leaves: history, page, and a recipe of every key."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from pipelines.pretraining.checkpoint import write_checkpoint
from pipelines.pretraining.history import History
from pipelines.pretraining.page import render_page
from pipelines.pretraining.settings import RunSettings, make_plan
from vfm_ops.errors import VfmError


def test_history_of_a_long_run_stays_small_and_keeps_its_ends():
    history = History()
    for step in range(50_000):
        history.add({"step": step, "loss": 1.0})
    assert len(history.steps) <= 10_001
    assert history.steps[0]["step"] == 0
    assert history.steps[-1]["step"] >= 49_990


def test_page_escapes_what_users_named():
    history = History(steps=[{"step": 0, "loss": 1.0}, {"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}])
    page = render_page("<b>", history, {"probe": 0.5}, {"selection": "<script>"}, warning="<i>")
    assert "<script>" not in page
    assert "<b>&lt;" not in page
    assert "nan" not in page


def test_the_recipe_writes_every_key_out_with_its_default():
    import yaml

    recipe = Path(__file__).parents[3] / "jobs" / "recipes" / "pretrain.yaml"
    written = yaml.safe_load(recipe.read_text())["run"]
    assert RunSettings(**written) == RunSettings()
    assert set(written) == set(RunSettings.model_fields)
    assert make_plan(recipe=str(recipe)).objective == "simclr"


def test_a_checkpoint_that_finds_no_space_leaves_none_of_it(tmp_path, monkeypatch):
    def half(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(VfmError, match=r"can't write a checkpoint of step 7 .* free space"):
        write_checkpoint({"step": 7}, History())
    assert list(tmp_path.iterdir()) == []
