"""`vfm bench peers`: a folder of JPEGs, or of clips, to vectors in a Lance table, from the command to committed rows: ours, and
peers.

Same files, same model, same cores, same output: vectors, and no pictures (a row says what storing them costs). Peers that are
not installed are brought into a folder of the cache. Ours also checks every file and commits exactly once. What each loop does
is in `peer_loops`.
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

from jobs.bench.media import write_jpegs, write_long_clips
from jobs.bench.process import EMBED_ONLY
from vfm_ops.models.cache import cache_root
from vfm_ops.models.shipped import DEFAULT_EMBEDDER
from vfm_ops.processes import python_path

ROUNDS, LIMIT_S = 3, 1800
SETTLED_S = 5.0  # the processes of a Ray end some seconds after the command that started it
# What a peer needs beside what the product has; `--no-deps`, so that it runs with the same torch, Ray and Arrow as ours.
PACKAGES = {
    "daft": ("daft>=0.7",),
    "nemo-curator": ("nemo-curator>=1.4", "cosmos-xenna", "loguru", "absl-py", "portpicker", "tabulate"),
}
# (workers, threads of each) that are tried; the best counts.
SPLITS = ((1, 2), (2, 1))


@dataclass(frozen=True)
class Part:
    """kind: `images` or `videos`. bars: of ours, rates over theirs, by peer."""

    kind: str
    runtime: str
    bars: dict[str, float]

    def what(self, count: int) -> str:
        """What is done, in words."""
        what = "images" if self.kind == "images" else "clips of 24 s at a frame a second"
        return f"{count:,} {what}, {'float32 in torch' if self.runtime == 'torch' else 'each with the fastest runtime'}"

    def count(self, quick: bool) -> int:
        """Files."""
        return (200 if quick else 4000) if self.kind == "images" else (6 if quick else 60)


PARTS = (
    Part("images", "auto", {"bare": 0.85, "daft": 1.8, "ray-best": 2.0, "ray-documented": 3.5, "nemo-curator": 2.5}),
    Part("videos", "auto", {"bare": 0.9, "daft": 2.0, "ray-best": 2.5, "ray-documented": 2.5}),
    Part("images", "torch", {"bare": 0.85, "daft": 1.15, "ray-best": 1.3, "ray-documented": 2.0, "nemo-curator": 1.5}),
)
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

    part: Part
    name: str
    workers: int
    threads: int

    def run(self, files: Path, out: Path) -> float:
        """Seconds of the whole command."""
        split = [self.part.runtime, str(self.workers), str(self.threads)]
        environment = os.environ | {"PYTHONPATH": python_path(*filter(None, [packages(self.name)]))}
        module = [sys.executable, "-m", "jobs.bench.peer_loops"]
        seconds = _timed([*module, self.part.kind, self.name, str(files), str(out), *split], environment)
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


def ours(files: Path, lake: Path, runtime: str, store: bool = False) -> float:
    """Seconds of `vfm process FILES`. store: pictures, too."""
    settings: dict[str, Any] = {"model": DEFAULT_EMBEDDER}
    if runtime == "torch":
        settings |= {"runtime": "torch", "precision": "exact"}
    embed = ", ".join(f'{key}: "{value}"' for key, value in settings.items())
    command = ["jobs.process", str(files), "--lake", str(lake), *EMBED_ONLY, "--set", f"embed={{{embed}}}"]
    seconds = _timed([sys.executable, "-m", *command, *([] if store else ["--set", "jpeg.store=false"])], None)
    shutil.rmtree(lake)
    return seconds


def measure(quick: bool, kept: Path | None = None) -> list[dict[str, Any]]:
    """Rows: what, ours, theirs, ratio, bar, who is ahead; files/s of whole commands, medians of alternating pairs.

    kept: a file of rows that goes on where it was cut: what it already holds of this machine is not measured again.
    """
    from jobs.bench import Kept

    file = Kept(kept, "peers", quick)
    rows = file.rows
    for part in PARTS:
        count = part.count(quick)
        if any(row["what"] == part.what(count) for row in rows):
            continue
        with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
            rows += [{"what": part.what(count), **row} for row in _compare(part, quick, Path(folder))]
        file.write(rows)
    return rows


def _compare(part: Part, quick: bool, root: Path) -> list[dict[str, Any]]:
    """Rows of one part."""
    count = part.count(quick)
    files = _write_files(part.kind, root, count)
    (root / "few").mkdir()
    for path in sorted(files.iterdir())[: max(count // 10, 4)]:
        (root / "few" / path.name).hardlink_to(path)
    ours(root / "few", root / "warm", part.runtime)  # fills the cache of converted models
    best = {name: _best(part, name, root, quick) for name in part.bars}
    times: dict[str, list[float]] = {name: [] for name in ("ours", "stored", *best)}
    for _ in range(1 if quick else ROUNDS):
        for name in ("ours", "stored"):
            times[name].append(ours(files, root / "lake", part.runtime, name == "stored"))
        for name, loop in best.items():
            times[name].append(loop.run(files, root / "out"))
    rows = [
        {**_row(count, times["ours"], times[name], bar, NAMES[name] + _version(name)), "note": _split(best[name])}
        for name, bar in part.bars.items()
    ]
    return [*rows, _row(count, times["ours"], times["stored"], None, "ours, which stores the pictures too")]


def _write_files(kind: str, root: Path, count: int) -> Path:
    if kind == "videos":
        return write_long_clips(root, count)
    write_jpegs(root / "images", count)
    return root / "images"


def _best(part: Part, name: str, root: Path, quick: bool) -> Loop:
    loops = [Loop(part, name, workers, threads) for workers, threads in SPLITS[: 1 if quick else None]]
    return min(loops, key=lambda loop: loop.run(root / "few", root / "out"))


def _split(loop: Loop) -> str:
    return f"{loop.workers} processes of {loop.threads} threads"


def _row(count: int, mine: list[float], theirs: list[float], bar: float | None, peer: str) -> dict[str, Any]:
    ratios = sorted(t / m for t, m in zip(theirs, mine))
    ratio = statistics.median(ratios)
    return {
        "peer": peer,
        "ours": count / statistics.median(mine),
        "theirs": count / statistics.median(theirs),
        "ratio": ratio,
        "spread": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        "bar": None if bar is None else f"at least {bar}",
        "ahead": None if bar is None else "ours" if ratio > 1 else "theirs",
    }


def _version(name: str) -> str:
    """Of a peer, after a space; empty for the bare loop."""
    if name == "bare":
        return ""
    if name not in PACKAGES:
        return f" {version('ray')}"
    found = next((packages(name) or Path()).glob(f"{name.replace('-', '_')}-*.dist-info"))
    return f" {found.name.removesuffix('.dist-info').rpartition('-')[2]}"


def _timed(command: list[str], environment: dict[str, str] | None) -> float:
    time.sleep(SETTLED_S)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-3:]}")
    return time.perf_counter() - started
