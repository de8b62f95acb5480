"""A lake that one may only read: commands that read work, and those that write say so, before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.curation.conftest import LakeBuilder, kinds, picture

# CAP_DAC_OVERRIDE, which lets root write what nobody may, is given up; the commands then run in one process.
RUN = """
import ctypes, contextlib, io, json, os, sys
if len(sys.argv) == 2:
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1], sys.stdin.read()])
from jobs.cli import main
for command in json.loads(sys.argv[2]):
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        code = main(command)
    print(json.dumps([command[0], code, error.getvalue()]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of each command on a lake of six stills in a folder without a write bit."""
    folder = tmp_path_factory.mktemp("read-only")
    builder = LakeBuilder(folder / "lake")
    frame = builder.stills([picture(i) for i in range(6)], list(kinds([6])[0]))[0]
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(b"x")
    lake = str(folder / "lake")
    commands = {
        "search": ["--frame", frame],
        "report": ["--out", str(folder / "report.html")],
        "diff": ["--from", "1"],
        "verify": [],
        "ingest": [str(folder / "in")],
        "process": ["--set", "embed=[]", "--set", "shots.detector=none"],  # no model is looked at first
        "curate": [],
        "index": [],
        "retry": [],
    }
    paths = [folder / "lake", *(folder / "lake").rglob("*")]
    try:
        for path in paths:
            path.chmod(path.stat().st_mode & ~0o222)
        typed = json.dumps([[name, *rest, "--lake", lake] for name, rest in commands.items()])
        done = subprocess.run([sys.executable, "-c", RUN, RUN], input=typed, capture_output=True, text=True)
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)
    assert done.returncode == 0, done.stderr
    assert not list(Path(lake).rglob(".tmp*"))
    return {name: (code, error) for name, code, error in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("command", ["search", "report", "diff"])
def test_commands_that_read_work(answers, command):
    assert answers[command] == (0, "")


@pytest.mark.parametrize("command", ["ingest", "process", "curate", "index", "retry"])
def test_commands_that_write_refuse_in_a_sentence(answers, command):
    code, error = answers[command]
    assert code == 2
    *_, last = error.splitlines()  # a slow machine shows progress first
    assert last.startswith("error: cannot write to the lake /")
    assert "permission denied; run this as who may write there" in last


def test_verify_gives_its_verdict(answers):
    assert "denied" not in answers["verify"][1]
