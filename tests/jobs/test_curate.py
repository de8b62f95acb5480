"""`vfm curate`, `vfm report` and `vfm schedule`, as a user types them, and as Kubernetes does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from pipelines.curation import selections
from tests.pipelines.curation.conftest import LakeBuilder, kinds, picture

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


@pytest.fixture
def lake(tmp_path):
    """60 stills of two kinds and three copies."""
    builder = LakeBuilder(tmp_path / "lake")
    x, _ = kinds([45, 15], seed=1)
    builder.stills([picture(i) for i in range(60)], list(x))
    builder.stills([picture(i) for i in range(3)], list(x[:3]))
    return builder.lake


def test_curate_says_why_and_a_second_run_that_nothing_is_new(lake, capsys):
    command = ["curate", "--lake", lake.root, "--set", "cluster.levels=[6]", "--set", "sample.target=20"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("curated, generation 1 (full):")
    assert "  exact duplicate   3" in out
    assert "kept 20 of 63 items in " in out
    assert main(command) == 0
    assert capsys.readouterr().out == "nothing is new: curated keeps 20 of 63 items\n"
    assert main([*command, "--full", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["generation"], facts["mode"], facts["changes"]) == (
        2,
        "full",
        {"entered": 0, "left": 0, "stayed": 20},
    )
    assert sum(facts["reasons"].values()) == 63
    assert main(["curate", "--lake", lake.root, "--reproduce"]) == 0
    assert capsys.readouterr().out.startswith("reproduced: curated generation 2 is identical")


def test_a_selection_that_cannot_be_reproduced_is_exit_code_3(lake, capsys):
    assert main(["curate", "--lake", lake.root, "--set", "sample.target=20"]) == 0
    manifest = selections.load_manifest(lake, "curated")
    manifest.recipe_yaml = manifest.recipe_yaml.replace("seed: 0", "seed: 1")
    selections.write_file(lake, "curated.g1.json", json.dumps(manifest.__dict__).encode())
    assert main(["curate", "--lake", lake.root, "--reproduce"]) == 3
    assert "came out differently" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sampel=3"], "unknown key sampel; did you mean sample?"),
        (["--set", "sample.target=64"], "a sample of 64 was asked for, but of 63 items only 60 are left"),
        (["--recipe", "/none.yaml"], "there is no recipe /none.yaml"),
        (["--selection", "../x"], "can't name a selection"),
        (["--reproduce"], "has no selection 'curated'"),
    ],
)
def test_a_wrong_command_is_one_line_exit_code_2_and_writes_nothing(lake, capsys, arguments, message):
    assert main(["curate", "--lake", lake.root, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert lake.dataset("selections") is None
    assert selections.list_selections(lake) == []


def test_a_curation_killed_at_work_ends_at_the_selection_of_a_calm_one(lake):
    command = [sys.executable, "-m", "jobs.curate", "--lake", lake.root, "--set", "cluster.levels=[6]", "--json"]
    calm = subprocess.run([*command, "--selection", "calm"], capture_output=True, text=True, timeout=200, check=True)
    marker = Path(lake.root) / "selections" / "killed.work.npz"
    killed = subprocess.Popen([*command, "--selection", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not marker.exists():
        pass
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = subprocess.run([*command, "--selection", "killed"], capture_output=True, text=True, timeout=200, check=True)
    assert json.loads(again.stdout)["reasons"] == json.loads(calm.stdout)["reasons"]
    both = [selections.read_rows(lake, n).drop_columns(["selection", "generation"]) for n in ("calm", "killed")]
    assert both[0].sort_by("frame_id").equals(both[1].sort_by("frame_id"))


def test_a_benchmark_cut_short_measures_only_the_parts_that_are_missing(tmp_path, monkeypatch):
    from jobs.bench import curate

    out, calls = tmp_path / "bench.json", []

    def part(name, fails=False):
        def work(quick, folder):
            assert folder.is_dir()
            calls.append(name)
            if fails:
                raise KeyboardInterrupt
            return [{"what": name, "ours": 1.0}]

        return work

    monkeypatch.setattr(curate, "PARTS", {"a": part("a"), "b": part("b", fails=True)})
    with pytest.raises(KeyboardInterrupt):
        curate.measure(True, out)
    monkeypatch.setattr(curate, "PARTS", {"a": part("a"), "b": part("b")})
    assert [row["part"] for row in curate.measure(True, out)] == ["a", "b"]
    assert calls == ["a", "b", "b"]
    curate.measure(False, out)  # other sizes: nothing of it counts
    assert calls[3:] == ["a", "b"]


def test_report_writes_one_file(lake, tmp_path, capsys):
    assert main(["curate", "--lake", lake.root]) == 0
    assert main(["report", "--lake", lake.root, "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {tmp_path / 'r.html'} (")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert main(["report", "--lake", lake.root, "--selection", "x"]) == 2


def test_schedule_adds_lists_and_removes(lake, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VFM_SCHEDULE", str(tmp_path / "state" / "s.sqlite"))
    recipe = str(RECIPES / "curate.yaml")
    assert main(["schedule", "list"]) == 0
    assert "nothing is scheduled" in capsys.readouterr().out
    add = ["schedule", recipe, "--lake", lake.root, "--selection", "nightly", "--address", "http://head:8265"]
    assert main([*add, "--cron", "0 3 * * *"]) == 0
    assert "by http://head:8265" in capsys.readouterr().out
    assert main(["schedule", "list"]) == 0
    assert capsys.readouterr().out.startswith(f"nightly: '0 3 * * *' UTC, {lake.root}, next 2")
    assert main(["schedule", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"][0]["cron"] == "0 3 * * *"
    for wrong, message in (
        (["--cron", "0 0 31 2 *"], "never fires"),
        (["--cron", "0 3 * * *", "--timezone", "Nowhere"], "no time zone 'Nowhere'"),
        ([], "a schedule needs --cron"),
    ):
        assert main([*add, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["schedule", "remove", "nightly"]) == 0
    assert main(["schedule", "remove", "nightly"]) == 2
