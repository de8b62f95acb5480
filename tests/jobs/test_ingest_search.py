"""The commands `vfm ingest`, `vfm index` and `vfm search`, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from pipelines.lake import Lake, embedding_field
from tests.pipelines.sources.conftest import encoded


@pytest.fixture
def folder(tmp_path):
    """Six images and a text."""
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(encoded(shade=40 * i))
    (tmp_path / "in" / "readme.md").write_text("x")
    return tmp_path / "in"


@pytest.fixture
def processed(folder, tmp_path):
    """A lake as ingest makes it, with frames as processing would: one an image, with a vector that turns with its number."""
    root = str(tmp_path / "lake")
    assert main(["ingest", str(folder), "--lake", root]) == 0
    lake = Lake.open(root)
    assets = lake.read("assets").sort_by("uri")
    field = embedding_field("timm:tiny", 2, {"digest": "d"})
    lake.ensure("frames", [field])
    angles = np.arange(6) * 0.2
    columns = {
        "frame_id": [f"{i}:0" for i in assets["asset_id"].to_pylist()],
        "asset_id": assets["asset_id"],
        "run_key": ["r.1"] * 6,
        "jpeg": pa.array([Path(u).read_bytes() for u in assets["uri"].to_pylist()], pa.large_binary()),
        "pts_s": pa.array([0.0] * 6),
        field.name: pa.array(list(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)), field.type),
    }
    schema = lake.schema("frames")
    full = pa.table([columns.get(f.name, pa.nulls(6, f.type)) for f in schema], schema)
    lake.commit("frames", lake.write_fragments("frames", full))
    return root


def test_ingest_sums_up_what_it_did(folder, tmp_path, capsys):
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake")]) == 0
    assert capsys.readouterr().out.startswith("6 added, 0 changed, 0 unchanged, 1 skipped (1 .md), 0 unreadable; ")
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["added"], facts["unchanged"], facts["skipped"]) == (0, 6, {".md": 1})


def test_something_unreadable_is_exit_code_1_and_counted_last(folder, tmp_path, capsys):
    (folder / "bad.tar").write_bytes(b"?" * 2000)
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake")]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 unreadable: not ingested"
    assert "bad.tar: is no readable tar archive" in err


def test_links_out_of_the_folder_are_refused_counted_and_taken_only_when_asked_for(folder, tmp_path, capsys):
    """A downloaded folder must not make the machine's own files part of a lake that others browse."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "passwd").write_text("root:x:0:0")
    (folder / "innocent.jpg").symlink_to(tmp_path / "other" / "passwd")
    (folder / "esc\x1b[31m.png").symlink_to("/proc/self/environ")
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake")]) == 1
    out, err = capsys.readouterr()
    assert "2 refused (outside its source), 0 unreadable" in out
    assert out.splitlines()[-1] == "2 refused: not ingested"
    assert f"innocent.jpg: leads out of {folder}, to {tmp_path}/other/passwd; --allow-outside takes it" in err
    assert "\x1b" not in out + err
    uris = Lake.open(tmp_path / "lake").read("assets")["uri"].to_pylist()
    assert sorted(map(os.path.basename, uris)) == [f"{i}.jpg" for i in range(6)]
    (folder / "esc\x1b[31m.png").unlink()
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake"), "--allow-outside", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["added"], facts["refused"]) == (1, {})


def test_a_source_of_nothing_but_refused_links_is_exit_code_2_and_says_why(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").symlink_to("/etc/hostname")
    assert main(["ingest", str(tmp_path / "in"), "--lake", str(tmp_path / "lake")]) == 2
    assert "leads out of" in capsys.readouterr().err
    assert not (tmp_path / "lake").exists()


def test_pipes_and_hostile_rows_cost_themselves(folder, tmp_path, capsys):
    os.mkfifo(folder / "x.tar")
    os.mkfifo(folder / "noname")
    (folder / "list.lst").write_bytes(b"0.jpg\na\0b.jpg\n" + b"y" * 20_000 + b"\nx.tar\n\xff\xfe.jpg\n1.jpg\n")
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"]["special file"] == 2
    assert main(["ingest", f"@{folder}/list.lst", "--lake", str(tmp_path / "lake2"), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["added"], facts["unreadable"], len(facts["problems"])) == (2, 4, 4)


def test_a_table_without_media_names_its_columns(folder, tmp_path, capsys):
    pq.write_table(pa.table({"caption": ["x"], "score": [1.0]}), folder / "t.parquet")
    assert main(["ingest", str(folder), "--lake", str(tmp_path / "lake")]) == 0
    assert "t.parquet: has no column of media; --column names one of caption, score" in capsys.readouterr().err
    assert main(["ingest", str(folder / "t.parquet"), "--lake", str(tmp_path / "lake2")]) == 2
    assert "--column names one of caption, score" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest"],
        ["ingest", "/nowhere", "--lake", "{lake}"],
        ["ingest", "{folder}", "--lake", "{folder}"],
        ["ingest", "{folder}", "--lake", "{lake}", "--captions", "beside"],
        ["search", "x", "--lake", "{lake}"],
        ["index", "--lake", "{lake}"],
    ],
)
def test_a_wrong_command_is_one_line_exit_code_2_and_writes_nothing(folder, tmp_path, capsys, arguments):
    before = sorted(os.listdir(folder))
    filled = [a.format(folder=folder, lake=tmp_path / "lake") for a in arguments]
    assert main(filled) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "lake").exists()
    assert sorted(os.listdir(folder)) == before


def test_process_ingests_what_it_is_given_first(folder, tmp_path, capsys):
    root = str(tmp_path / "lake")
    command = ["process", str(folder), "--lake", root, "--set", "ops=[phash]"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["frames"] == 6  # nothing but its own JSON is on stdout
    assert "ingested: 6 added" in said.err
    (folder / "6.jpg").write_bytes(encoded(shade=250))
    (folder / "outside.jpg").symlink_to(tmp_path / "lake" / "lake.json")
    assert main(command) == 1  # as `vfm ingest`, where something is refused
    said = capsys.readouterr()
    assert said.out.startswith("ingested: 1 added, 0 changed, 6 unchanged")
    assert Lake.open(root).count("frames") == 7
    assert main(["process", str(tmp_path / "nowhere"), "--lake", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_search_by_frame_prints_scores_json_and_a_sheet(processed, tmp_path, capsys):
    frame = Lake.open(processed).read("assets").sort_by("uri")["asset_id"][2].as_py() + ":0"
    capsys.readouterr()
    assert main(["search", "--frame", frame, "--lake", processed, "-k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [os.path.basename(h["uri"]) for h in hits][2] in ("0.jpg", "4.jpg")
    assert {os.path.basename(h["uri"]) for h in hits[:2]} == {"1.jpg", "3.jpg"}
    np.testing.assert_allclose([h["score"] for h in hits], np.cos([0.2, 0.2, 0.4]), atol=2e-3)
    sheet = tmp_path / "out.jpg"
    assert (
        main(["search", "--frame", frame, "--lake", processed, "--sheet", str(sheet), "--where", "uri LIKE '%5.jpg'"])
        == 0
    )
    assert "5.jpg" in capsys.readouterr().out
    assert Image.open(sheet).size[0] > 200


def test_index_reports_and_leaves_search_as_it_was(processed, capsys):
    assert main(["index", "--lake", processed, "--keep-days", "0"]) == 0
    out = capsys.readouterr().out
    assert "frames.emb_timm_tiny: 6 vectors, scanned exactly" in out
    assert "frames.frame_id: btree new, 6 rows" in out
    assert main(["index", "--lake", processed, "--json"]) == 0
    assert {i["built"] for i in json.loads(capsys.readouterr().out)["indices"]} == {"current", "exact"}


@pytest.mark.parametrize(
    "bad", [["--sheet", "x.gif"], ["--sheet", "/no/where/x.jpg"], ["--where", "nothing = 1"], ["-k", "0"]]
)
def test_wrong_search_options_are_refused(processed, capsys, bad):
    assert main(["search", "--frame", "a:0", "--lake", processed, *bad]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ingest_runs_as_a_module_which_is_how_a_cluster_runs_it(folder, tmp_path):
    command = [sys.executable, "-m", "jobs.ingest", str(folder), "--lake", str(tmp_path / "lake"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 6
