"""The suite's own promises: what is hidden is absent everywhere, skips say what to install, and no process stays behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
# Run within a test, and once more in a child of it: which of some modules, distributions and programs are absent.
LOOK = """
import importlib.metadata, importlib.util, json, shutil

def installed(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False

modules = [n for n in ("faiss", "moto", "numpy") if importlib.util.find_spec(n)]
distributions = [n for n in ("faiss-cpu", "numpy") if installed(n)]
print(json.dumps([modules, distributions, shutil.which("ffmpeg"), bool(shutil.which("sh"))]))
"""
LOOKS_TWICE = f"""
import subprocess, sys

def test_looks():
    exec({LOOK!r}, {{}})
    print(subprocess.run([sys.executable, "-c", {LOOK!r}], capture_output=True, text=True).stdout)
"""


def suite(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a file of tests in a session of its own, under this suite's conftest."""
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "tests.conftest", "-c", os.devnull, "--rootdir", str(folder)]
    # Plugins take most of the time of so small a session, and are not what is tried here.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    return subprocess.run([*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_what_is_hidden_is_absent_in_the_tests_and_in_every_child(tmp_path):
    done = suite(tmp_path, LOOKS_TWICE, VFM_TESTS_HIDE="extras,debian")
    assert done.returncode == 0, done.stdout
    assert "hidden: debian, extras" in done.stdout
    looks = [json.loads(line) for line in re.findall(r"^.*?(\[\[.*)$", done.stdout, re.M)]
    assert looks == [[["numpy"], ["numpy"], None, True]] * 2


def test_an_unknown_group_is_refused(tmp_path):
    done = suite(tmp_path, "def test_nothing():\n    pass", VFM_TESTS_HIDE="extra")
    assert done.returncode != 0
    assert "VFM_TESTS_HIDE names debian, media, weights, extras, not extra" in done.stdout + done.stderr


def test_a_skip_for_what_is_hidden_says_what_to_install(tmp_path):
    text = "import pytest\n\ndef test_skips():\n    pytest.skip('{}')"
    silent = suite(tmp_path, text.format("needs a thing"), VFM_TESTS_HIDE="debian")
    assert silent.returncode == 1
    assert "skips that do not say what to install" in silent.stdout
    assert suite(tmp_path, text.format("needs it: pip install it"), VFM_TESTS_HIDE="debian").returncode == 0


def test_a_process_that_outlives_the_tests_fails_them_and_is_ended(tmp_path):
    """Even one whose parent is gone, which no longer descends from the session."""
    text = '''
import subprocess, sys

ORPHAN = """
import subprocess, os
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(subprocess.Popen(["sleep", "600"], start_new_session=True, **quiet).pid, flush=True)
os._exit(0)
"""

def test_leaves():
    print("left", subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True).stdout)
'''
    done = suite(tmp_path, text, VFM_TESTS_GRACE_S="0.2")
    pid = int(re.search(r"left (\d+)", done.stdout).group(1))
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert re.search(rf"processes left behind.*\n{pid}, \d+ MB: sleep 600", done.stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_each_worker_of_a_shared_out_session_is_held_to_it(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_nothing():\n    pass")
    text = """
import subprocess

def test_leaves():
    subprocess.Popen(["sleep", "600"])
"""
    plugins = {"PYTEST_PLUGINS": "xdist.plugin", "PYTEST_ADDOPTS": "-n 2", "VFM_TESTS_GRACE_S": "0.2"}
    done = suite(tmp_path, text, **plugins)
    assert done.returncode == 1
    assert "2 passed" in done.stdout
    assert re.search(r"processes left behind.*\n\d+, \d+ MB: sleep 600", done.stdout)
