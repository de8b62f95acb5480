"""Every command that README shows as run must work as it stands, in order, for a newcomer with a folder of pictures."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def shown_commands() -> list[str]:
    blocks = re.findall(r"```console run\n(.*?)```", README.read_text(), flags=re.S)
    return [
        line.removeprefix("$ ").split("#")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def test_the_readmes_commands_work_in_order(tmp_path, photographs):
    (tmp_path / "pictures").mkdir()
    for path in photographs[:6]:
        shutil.copyfile(path, tmp_path / "pictures" / path.name)
    commands = shown_commands()
    assert len(commands) >= 7
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vfm"
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "found.jpg").stat().st_size > 1000
