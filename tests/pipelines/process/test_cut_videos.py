"""Videos that end in an error after frames were handed on: every asset is settled, with its salvaged frames and a sentence.

A frame that is counted but whose row never comes would keep its asset open for good, and `verify` violated.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.lake import Lake, verify_lake
from pipelines.process import process
from pipelines.process.decode import HELD_FRAMES, ROWS, DecodeAssets
from pipelines.process.frames import is_frame
from pipelines.process.recipe import Recipe
from pipelines.settings import validate
from pipelines.sources import ingest
from tests.vfm_ops.media.video_files import encode_video
from vfm_ops.errors import MediaError

RECIPES = {
    "no shots": {"shots": {"detector": "none"}, "sampling": {"mode": "all"}},
    "shots in one pass": {"shots": {"detector": "content"}, "sampling": {"mode": "every_n", "every_n": 4}},
    "shots, then frames": {"shots": {"detector": "content"}, "sampling": {"mode": "all"}},
    "frames of each shot": {"shots": {"detector": "content"}, "sampling": {"mode": "per_shot", "per_shot": 200}},
}


@pytest.fixture(scope="module")
def cut_video(tmp_path_factory) -> Path:
    """More frames before the cut than are held while shots are looked for, and no whole number of working tables."""
    path = encode_video(tmp_path_factory.mktemp("cut") / "cut.mkv", count=255, size=(64, 48), options={"bf": "0"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.8)])
    return path


def recipe_of(sections: dict) -> Recipe:
    return validate(Recipe, {"embed": [], **sections}, "test")


def asset(path: Path) -> pa.Table:
    columns = dict.fromkeys(("member", "container", "offset", "length", "etag"), pa.nulls(1, pa.string()))
    known = {"asset_id": ["a"], "uri": [str(path)], "media_type": ["video"], "attempt": [1]}
    return pa.table(known | columns)


@pytest.mark.parametrize("sections", RECIPES.values(), ids=RECIPES)
def test_an_asset_counts_the_frames_that_came_and_no_other(cut_video, sections):
    op = DecodeAssets(recipe_of(sections), {}, 1)
    try:
        tables = list(op(asset(cut_video)))
    finally:
        op.sandbox.close()
    numbers = [n for t in tables for n in t.filter(is_frame(t))["frame_index"].to_pylist()]
    outcome = json.loads(tables[-1]["outcome"][0].as_py())
    assert outcome["frames"] == len(numbers) > 0
    assert outcome["error_type"] == "truncated"
    assert "kept" in outcome["message"]
    step = sections["sampling"].get("every_n", 1)
    assert numbers == list(range(0, step * len(numbers), step))
    if step == 1:
        assert len(numbers) > HELD_FRAMES
        assert len(numbers) % ROWS


@pytest.mark.parametrize("error", [MediaError("crash", "its decoder crashed"), ValueError("a bug"), MemoryError()])
def test_any_error_between_frames_costs_no_frame_that_came_before(cut_video, error, monkeypatch):
    """Also one that nobody foresaw: the class of the error must not decide what is counted."""
    op = DecodeAssets(recipe_of(RECIPES["no shots"]), {}, 1)
    whole = op.sandbox.frames

    def breaks_off(*arguments):
        for number, frame in enumerate(whole(*arguments)):
            if number == ROWS + 5:
                raise error
            yield frame

    monkeypatch.setattr(op.sandbox, "frames", breaks_off)
    try:
        tables = list(op(asset(cut_video)))
    finally:
        op.sandbox.close()
    outcome = json.loads(tables[-1]["outcome"][0].as_py())
    assert sum(t.filter(is_frame(t)).num_rows for t in tables) == outcome["frames"] == ROWS + 5
    assert outcome["stage"] == "decode"


def test_a_cut_video_is_settled_with_salvaged_frames_and_a_sentence(cut_video, tmp_path):
    ingest([str(cut_video)], str(tmp_path / "lake"))
    lake = Lake.open(tmp_path / "lake")
    summary = process(lake, recipe_of(RECIPES["shots, then frames"]))
    assert summary.counts["quarantined"] == 1
    assert verify_lake(lake).violations == []
    (row,) = lake.read("quarantine").to_pylist()
    frames = lake.read("frames", ["salvaged"])["salvaged"].to_pylist()
    assert row["salvaged_frames"] == len(frames) > HELD_FRAMES
    assert all(frames)
    assert "truncated" in row["message"]
    assert process(lake, recipe_of(RECIPES["shots, then frames"])).counts.get("assets", 0) == 0
