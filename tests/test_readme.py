"""What README and the pages of docs/ show must work as it stands, in order, for a newcomer with a folder of pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.bench import BENCHMARKS
from jobs.pocket import table
from tests.conftest import default_weights, optional_package

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def shown_commands() -> list[str]:
    blocks = re.findall(r"```console run\n(.*?)```", README, flags=re.S)
    return [
        line.removeprefix("$ ").split("#")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def run_python(*arguments: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"


@pytest.fixture(scope="module")
def ran(tmp_path_factory, photographs) -> Path:
    """A folder with the files that README shows, in which all of its commands ran."""
    default_weights()
    tmp_path = tmp_path_factory.mktemp("readme")
    (tmp_path / "pictures").mkdir()
    for path in photographs[:6]:
        shutil.copyfile(path, tmp_path / "pictures" / path.name)
    files = re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", README, flags=re.S)
    assert [name for name, _ in files] == ["my_ops.py", "recipe.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    commands, environment = shown_commands(), {}
    assert len(commands) >= 10
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            environment[name] = os.pathsep.join(filter(None, [value, os.environ.get(name)]))
            continue
        assert program == "vfm"
        run_python("-m", "jobs.cli", *arguments, folder=tmp_path, environment=environment)
    return tmp_path


def test_the_readmes_commands_work_in_order(ran):
    assert (ran / "found.jpg").stat().st_size > 1000
    assert (ran / "report.html").stat().st_size > 10_000


def test_the_readmes_recipe_gives_the_column_of_its_op_and_diff_tells_it(ran):
    from pipelines.lake import Lake

    assert Lake.open(ran / "lake").count("frames", "brightness BETWEEN 1 AND 255") == 6
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "diff", "--lake", "lake", "--json"], cwd=ran, capture_output=True, text=True
    )
    (frames,) = [table for table in json.loads(done.stdout)["tables"] if table["table"] == "frames"]
    assert {"brightness version 1"} <= {column["by"] for column in frames["columns"]}


def test_the_readmes_python_makes_and_searches_a_lake(ran, tmp_path):
    shutil.copytree(ran / "pictures", tmp_path / "pictures")
    (code,) = re.findall(r"```python run\n(.*?)```", README, flags=re.S)
    run_python("-c", code, folder=tmp_path, environment={})
    from pipelines.lake import Lake, verify_lake

    lake = Lake.open(tmp_path / "lake")
    assert lake.count("frames") == lake.count("assets") > 0
    assert verify_lake(lake).violations == []


def test_the_python_of_the_lakes_page_reads_the_lake_that_the_readme_made(ran, monkeypatch):
    optional_package("duckdb")
    monkeypatch.chdir(ran)
    (code,) = re.findall(r"```python run\n(.*?)```", page("lake.md"), flags=re.S)
    *statements, query = code.strip().splitlines()
    names: dict = {}
    exec("\n".join(statements), names)
    assert len(eval(query, names).fetchall()) == 6


def test_the_readme_is_read_in_five_minutes():
    assert len(README.splitlines()) <= 125


def test_every_benchmark_has_its_place_on_the_page_and_every_table_can_be_put_there():
    text = page("BENCHMARKS.md")
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.M)
    assert listed == list(BENCHMARKS)
    tables = re.findall(r"<!-- bench:(\w+) -->\n.*?\n\n?\| .*?<!-- /bench:(\w+) -->", text, flags=re.S)
    assert [what for what, _ in tables] == [end for _, end in tables]
    below = [what for what in BENCHMARKS if f"(#{what})" in text]
    assert sorted(below) == sorted(what for what, _ in tables)


def test_the_table_of_pocket_models_is_that_of_their_cards():
    shown = page("models.md").splitlines()
    assert [line for line in table().splitlines() if line not in shown] == []


def test_the_index_of_the_pages_names_each_of_them():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", page("README.md"))) == pages
