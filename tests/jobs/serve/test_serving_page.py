"""What docs/serving.md shows works as it stands: its curl lines and client commands, in order, against a running one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def shown(language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def test_curl_and_client_examples_work_as_shown(served, tmp_path):
    shutil.copyfile(served.media / "chelsea.png", tmp_path / "cat.jpg")
    (session,) = [block for block in shown("sh") if "curl" in block]
    assert session.count("curl -sf ") >= 6  # -f: an HTTP error ends the script
    programs = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = session.replace("http://localhost:8000", served.url)
    done = subprocess.run(
        ["bash", "-xeuo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=programs,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"probability"' in done.stdout
    assert json.loads((tmp_path / "hits.json").read_text())["hits"][0]["name"] == "chelsea.png"
    assert (tmp_path / "head.bin").read_bytes() == (served.media / "chelsea.png").read_bytes()[:1024]
    assert (tmp_path / "frame.jpg").read_bytes()[:2] == b"\xff\xd8"
    (example,) = shown("python")
    script = example.replace("http://localhost:8000", served.url)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
