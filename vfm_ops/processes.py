"""Processes of our own: how they find the product, and in words how they ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)


def python_path(*folders: str | Path) -> str:
    """PYTHONPATH of a Python that is to find this product, then these folders, then what ours finds by that variable."""
    return os.pathsep.join([ROOT, *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def how_it_ended(code: int) -> str:
    """A return code of `subprocess`: `exit code 3`, or the name of the signal."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
