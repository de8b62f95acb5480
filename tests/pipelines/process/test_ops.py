"""If these fail, a user's own columns are lost, computed twice, or mixed with those of another version of the op."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from jobs.cli import main
from pipelines.lake import Lake, verify_lake
from pipelines.process.recipe import Recipe
from pipelines.process.run import process
from pipelines.sources import ingest
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.media.view import View
from vfm_ops.op import op

PAGE = (Path(__file__).parents[3] / "docs" / "adding-an-op.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
CALLS = """
import os
import pyarrow as pa
from vfm_ops.media.view import View
from vfm_ops.op import Op, Settings, op

def note(count):
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{count}\\n")

@op(adds={"shade": pa.float32()}, needs=View(16), version=int(os.environ.get("SHADE", "1")))
def shade(images):
    note(len(images))
    if os.environ.get("FAILS") and images.mean() > 0:
        raise ValueError("no shade today")
    return images.mean(axis=(1, 2, 3))

@op(adds={"lighter": pa.float32()}, needs=None, columns=("shade",))
def lighter(shade):
    return [None if s is None else s + 1 for s in shade]

@op(adds={"none": pa.string()})
def none(images):
    return [None] * len(images)

@op(adds={"short": pa.int32()})
def short(images):
    return [1] * (len(images) + 1)

@op(adds={"width": pa.int32()})
def width(images):
    return [1] * len(images)
"""


@pytest.fixture
def lake(tmp_path, monkeypatch) -> Lake:
    """Six frames, and a module of ops whose calls are counted."""
    (tmp_path / "counted_ops.py").write_text(CALLS)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("counted_ops", *(file.removesuffix(".py") for file in FILES)):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.new("RGB", (48, 40), (200, 30 * i, 10)).save(tmp_path / "in" / f"{i}.jpg")
    ingest([str(tmp_path / "in")], str(tmp_path / "lake"))
    lake = Lake.open(tmp_path / "lake")
    assert process(lake, Recipe()).counts["assets"] == 6
    return lake


def calls(tmp_path) -> int:
    """Pictures that the op has seen."""
    path = tmp_path / "calls"
    return sum(map(int, path.read_text().split())) if path.exists() else 0


def recipe(*ops) -> Recipe:
    return Recipe(ops=ops)


def test_an_op_that_comes_late_fills_its_column_once(lake, tmp_path):
    plan = recipe("counted_ops:shade", "counted_ops:lighter")
    assert process(lake, plan).counts["backfilled"] == 12
    rows = lake.read("frames", ["shade", "lighter"]).to_pylist()
    assert len(rows) == 6
    assert all(r["lighter"] == pytest.approx(r["shade"] + 1) for r in rows)
    assert calls(tmp_path) == 6
    assert process(lake, plan).counts["backfilled"] == 0
    assert calls(tmp_path) == 6
    assert verify_lake(lake).violations == []


def test_what_an_op_fails_on_is_said_and_tried_again_on_request(lake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAILS", "1")
    assert process(lake, recipe("counted_ops:shade")).counts["backfilled"] == 0
    errors = lake.read("frames", ["error"])["error"].to_pylist()
    assert all("op shade: ValueError: no shade today" in e for e in errors)
    seen = calls(tmp_path)
    assert process(lake, recipe("counted_ops:shade")).counts["backfilled"] == 0
    assert calls(tmp_path) == seen, "what failed is not tried again by itself"
    assert verify_lake(lake).violations == []
    monkeypatch.delenv("FAILS")
    assert main(["retry", "--lake", lake.root, "--op", "lighter"]) == 2
    assert capsys.readouterr().err == "error: the recipe has no op lighter; its ops are shade\n"
    assert main(["retry", "--lake", lake.root, "--op", "shade"]) == 0
    assert capsys.readouterr().out.startswith("no asset is pending; models and ops gave 6 values"), "by the last recipe"
    assert lake.count("frames", "shade IS NULL") == 0
    assert lake.count("frames", "error IS NOT NULL") == 0
    assert main(["retry", "--lake", lake.root, "--recipe", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_another_version_is_computed_anew_and_what_is_dropped_is_gone(lake, tmp_path, monkeypatch, capsys):
    process(lake, recipe("counted_ops:shade"))
    import sys

    monkeypatch.setenv("SHADE", "2")
    monkeypatch.delitem(sys.modules, "counted_ops")
    assert process(lake, recipe("counted_ops:shade")).counts["backfilled"] == 6
    assert process(lake, recipe("counted_ops:shade")).counts["backfilled"] == 0
    assert main(["drop", "--lake", lake.root, "--op", "shade"]) == 0
    assert "dropped shade" in capsys.readouterr().out
    assert "shade" not in lake.schema("frames").names
    assert process(lake, recipe("counted_ops:shade")).counts["backfilled"] == 6
    assert main(["info", "--lake", lake.root]) == 0
    assert "shade by shade version 2: 6 frames, 0 pending" in capsys.readouterr().out
    assert main(["drop", "--lake", lake.root, "--op", "nothing"]) == 2


def test_a_row_without_a_value_is_not_computed_for_ever(lake):
    assert process(lake, recipe("counted_ops:none")).counts["backfilled"] == 0
    assert lake.count("frames", "error LIKE '%op none gave no value%'") == 6
    assert verify_lake(lake).violations == []


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (("counted_ops:lighter",), "op lighter reads column shade: put an op or model that adds it before it"),
        (("counted_ops:short",), "op short gave 7 for 6 rows"),
        (("counted_ops:width",), "op width adds column width, which is the lake's"),
        (("counted_ops:shad",), "counted_ops has no shad"),
    ],
)
def test_wrong_ops_are_named_and_leave_the_lake_as_it_was(lake, ops, message):
    with pytest.raises(Exception, match=message):
        process(lake, recipe(*ops))
    assert verify_lake(lake).counts["frames"] == 6


def test_what_the_page_shows_works(lake, photographs, capsys):
    assert main(["try", "--op", "my_ops:brightness", str(photographs[0])]) == 0
    assert "brightness" in capsys.readouterr().out
    assert main(["try", "--op", "my_filters:Sky", "--lake", lake.root, "-n", "4", "--set", "least=1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all('"dropped": "sky"' in line for line in lines)
    before = {t: lake.count(t) for t in ("frames", "ledger")}
    assert main(["try", "--op", "quality", "--lake", lake.root, "-n", "2"]) == 0
    assert {t: lake.count(t) for t in ("frames", "ledger")} == before
    options = ["--set", "ops=['my_ops:brightness']", "--set", "embed=[]", "--set", "shots.detector=none"]
    assert main(["process", "--lake", lake.root, *options]) in (0, 1)
    assert lake.count("frames", "brightness IS NOT NULL") == 6
    (line,) = re.findall(r"vfm (process --lake lake --set .*Bright.*)", PAGE)
    words = [w.replace("lake", lake.root, 1) if w == "lake" else w for w in shlex.split(line)]
    assert main([*words, "--set", "shots.detector=none"]) in (0, 1)
    assert lake.count("frames", "luma IS NOT NULL AND bands_count IS NOT NULL") == 6
    assert verify_lake(lake).violations == []


def test_try_prints_a_line_for_each_sound_picture_alone(photographs, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert main(["try", "--op", "quality", str(tmp_path / "broken.jpg")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {tmp_path}/broken.jpg" in err
    assert main(["try", "--op", "quality", str(tmp_path / "broken.jpg"), str(photographs[0])]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_try_shows_rows_of_a_table(lake, capsys):
    assert main(["try", "--op", "my_tables:bands", "--lake", lake.root, "-n", "3", "--json"]) == 0
    assert all('"rows": [' in line for line in capsys.readouterr().out.splitlines())
    assert main(["try", "--op", "my_tables:bands", "--lake", lake.root, "-n", "3"]) == 0
    assert "rows of table bands" in capsys.readouterr().err
    assert main(["try", "--op", "my_tables:Cuts", "--lake", lake.root]) == 2
    assert "op cuts is on videos: name video files" in capsys.readouterr().err


@pytest.mark.parametrize("op", ["Cuts", "Motion"])
def test_try_shows_the_rows_of_a_video_that_a_run_writes(lake, bikes, tmp_path, capsys, op):
    ingest([str(bikes)], str(tmp_path / "videos"))
    videos = Lake.open(tmp_path / "videos")
    process(videos, Recipe(ops=[f"my_tables:{op}"], shots={"detector": "auto"}, sampling={"fps": 1}))
    names = {"Cuts": ["frame_index", "difference"], "Motion": ["start_s", "end_s", "difference"]}[op]
    written = sorted(videos.read(op.lower(), names).to_pylist(), key=lambda row: row[names[0]])
    assert main(["try", "--op", f"my_tables:{op}", str(bikes), "--json", "-n", "1000"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{name: row[name] for name in names} for row in shown] == written
    assert main(["try", "--op", f"my_tables:{op}", str(bikes), str(tmp_path / "none.mp4"), "-n", "2"]) == 1
    out, err = capsys.readouterr()
    assert out.count("difference") == 2
    assert f"2 videos, {len(written)} rows, 1 failed" in err
    assert "none.mp4 does not exist" in err


def test_a_video_at_which_an_op_raises_is_named_by_try(lake, bikes, tmp_path, capsys):
    text = FILES["my_tables.py"].replace("rows = []", "raise KeyError(7)")
    (tmp_path / "raising_tables.py").write_text(text)
    assert main(["try", "--op", "raising_tables:Cuts", str(bikes)]) == 1
    assert f"error: {bikes}: op cuts: KeyError: 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--op", "quality"],
        ["--op", "quality", "a.jpg", "--lake", "b"],
        ["--op", "quality", "/none.jpg"],
        ["--op", "quality", "a.jpg", "--where", "width > 1"],
    ],
)
def test_try_says_what_it_wants(arguments, capsys):
    assert main(["try", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7]) == ("", "error: ")


@op(adds={"mean": pa.float32()}, needs=View(16))
def mean(images):
    return images.mean(axis=(1, 2, 3))


@op(adds={"few": pa.int32()})
def few(images):
    return [1] * (len(images) - 1)


def test_on_ray_an_op_fills_its_column_and_its_faults_are_sentences(ray_local, lake):
    here = "tests.pipelines.process.test_ops"
    assert process(lake, recipe(f"{here}:mean")).counts["backfilled"] == 6
    with pytest.raises(VfmError, match="op few gave 5 for 6 rows"):
        process(lake, recipe(f"{here}:mean", f"{here}:few"))
    # Workers that run already do not see the folder of these: as where their machine lacks the package.
    with pytest.raises(UsageError, match="there is no module counted_ops; is its package installed here"):
        process(lake, recipe("counted_ops:shade"))
