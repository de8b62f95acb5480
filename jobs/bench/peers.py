"""`vfm bench peers`: a folder of JPEGs to vectors in a Lance table, from the command to committed rows: ours beside peers.

Same files, same model, same cores. Peers that are not installed are brought into a folder of the cache. Ours also checks every
file, stores the pictures and commits exactly once; peers write vectors alone. What each loop does is in `peer_loops`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.bench.media import write_jpegs
from jobs.bench.process import EMBED_ONLY
from vfm_ops.models.cache import cache_root
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.processes import python_path

ROUNDS, LIMIT_S = 3, 1800
# What a peer needs beside what the product has; `--no-deps`, so that it runs with the same torch, Ray and Arrow as ours.
PACKAGES = {
    "daft": ("daft>=0.7",),
    "nemo-curator": ("nemo-curator>=1.4", "cosmos-xenna", "loguru", "absl-py", "portpicker", "tabulate"),
}
# (workers, threads of each) that are tried; the best counts.
SPLITS = ((1, 2), (2, 1))
BARS = {  # of ours: rates over theirs
    "auto": {"bare": 0.85, "daft": 1.8, "ray-best": 2.0, "ray-documented": 3.5, "nemo-curator": 2.5},
    "torch": {"bare": 0.85, "daft": 1.15, "ray-best": 1.3, "ray-documented": 2.0, "nemo-curator": 1.5},
}
NAMES = {
    "bare": "the bare loop",
    "daft": "Daft",
    "ray-best": "Ray Data at its best",
    "ray-documented": "Ray Data as documented",
    "nemo-curator": "NeMo Curator",
}


@dataclass(frozen=True)
class Loop:
    """One of `peer_loops`, arranged."""

    name: str
    runtime: str
    workers: int
    threads: int

    def run(self, images: Path, out: Path) -> float:
        """Seconds of the whole command."""
        arguments = [self.name, str(images), str(out), self.runtime, str(self.workers), str(self.threads)]
        environment = os.environ | {"PYTHONPATH": python_path(*filter(None, [packages(self.name)]))}
        seconds = _timed([sys.executable, "-m", "jobs.bench.peer_loops", *arguments], environment)
        shutil.rmtree(out)
        return seconds


def packages(name: str) -> Path | None:
    """The folder with what a peer needs, brought where it is not there yet; None for what is installed anyway."""
    if name not in PACKAGES:
        return None
    folder = cache_root() / "peers" / name
    if not folder.exists():
        making = folder.with_name(f"{name}.part")
        shutil.rmtree(making, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(making)]
        subprocess.run([*pip, *PACKAGES[name]], check=True, capture_output=True, text=True)
        making.rename(folder)
    return folder


def ours(images: Path, lake: Path, runtime: str) -> float:
    """Seconds of `vfm ingest` and `vfm process`."""
    settings: dict[str, Any] = {"model": DEFAULT_EMBEDDER}
    if runtime == "torch":
        settings |= {"runtime": "torch", "precision": "exact"}
    embed = ", ".join(f'{key}: "{value}"' for key, value in settings.items())
    process = ["jobs.process", "--lake", str(lake), *EMBED_ONLY, "--set", f"embed={{{embed}}}"]
    seconds = _timed([sys.executable, "-m", "jobs.ingest", str(images), "--lake", str(lake)], None)
    seconds += _timed([sys.executable, "-m", *process], None)
    shutil.rmtree(lake)
    return seconds


def measure(quick: bool, kept: Path | None = None) -> list[dict[str, Any]]:
    """Rows: what, ours, theirs, ratio, bar, who is ahead; images/s of whole commands, medians of alternating pairs.

    kept: a file of rows that goes on where it was cut: what it already holds of this machine is not measured again.
    """
    from jobs.bench import Kept

    file = Kept(kept, "peers", quick)
    rows = file.rows
    for runtime in BARS:
        if any(row["what"] == _what(runtime, quick) for row in rows):
            continue
        with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
            rows += _compare(runtime, quick, Path(folder))
        file.write(rows)
    return rows


def _compare(runtime: str, quick: bool, root: Path) -> list[dict[str, Any]]:
    """Rows of one runtime."""
    write_jpegs(root / "images", _count(quick))
    (root / "few").mkdir()
    for path in sorted((root / "images").iterdir())[:400]:
        (root / "few" / path.name).hardlink_to(path)
    ours(root / "few", root / "warm", runtime)  # fills the cache of converted models
    best = {name: _best(name, runtime, root, quick) for name in BARS[runtime]}
    times: dict[str, list[float]] = {name: [] for name in ("ours", *best)}
    for _ in range(1 if quick else ROUNDS):
        times["ours"].append(ours(root / "images", root / "lake", runtime))
        for name, loop in best.items():
            times[name].append(loop.run(root / "images", root / "out"))
    return [
        {"what": _what(runtime, quick), **_row(name, best[name], _count(quick), times["ours"], times[name], bar)}
        for name, bar in BARS[runtime].items()
    ]


def _count(quick: bool) -> int:
    return 200 if quick else 4000


def _what(runtime: str, quick: bool) -> str:
    return f"{_count(quick):,} images, {'float32 in torch' if runtime == 'torch' else 'each with the fastest runtime'}"


def _best(name: str, runtime: str, root: Path, quick: bool) -> Loop:
    loops = [Loop(name, runtime, workers, threads) for workers, threads in SPLITS[: 1 if quick else None]]
    return min(loops, key=lambda loop: loop.run(root / "few", root / "out"))


def _row(name: str, loop: Loop, count: int, mine: list[float], theirs: list[float], bar: float) -> dict[str, Any]:
    ratios = sorted(t / m for t, m in zip(theirs, mine))
    ratio = statistics.median(ratios)
    made_by = {"ray-best": "ray", "ray-documented": "ray"}.get(name, name)
    known = f" {_version(made_by)}" if made_by != "bare" else ""
    return {
        "peer": NAMES[name] + known,
        "ours": count / statistics.median(mine),
        "theirs": count / statistics.median(theirs),
        "ratio": ratio,
        "spread": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        "bar": f"at least {bar}",
        "ahead": "ours" if ratio > 1 else "theirs",
        "note": f"{loop.workers} processes of {loop.threads} threads",
    }


def _version(name: str) -> str:
    if name not in PACKAGES:
        return version(name)
    found = next((packages(name) or Path()).glob(f"{name.replace('-', '_')}-*.dist-info"))
    return found.name.removesuffix(".dist-info").rpartition("-")[2]


def _timed(command: list[str], environment: dict[str, str] | None) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-3:]}")
    return time.perf_counter() - started
