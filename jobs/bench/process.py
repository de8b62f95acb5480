"""`vfm bench process`: ours against the best bare loop, in the same run; start-up, memory, and how memory grows."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.bench.media import read_frames, real_clips, repeat_clip, write_clip, write_jpegs, write_long_clips
from pipelines.lake import SCHEMAS, Lake, with_nulls
from vfm_ops.models.shipped import DEFAULT_EMBEDDER

EMBED_ONLY = tuple(w for key in ("quality.measure=false", "phash=false", "shots.detector=none") for w in ("--set", key))
# (threads, batch) of the bare loop: the best of these is the floor.
ARRANGEMENTS = ((1, 32), (2, 8), (2, 32), (3, 32))


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows: name, ours, floor, ratio, bar. Each pair is timed in turn, and the median of the ratios is taken."""
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        root = Path(folder)
        images = root / "images"
        write_jpegs(images, 600 if quick else 4000)
        clips = write_long_clips(root, 12 if quick else 60)
        rounds = 1 if quick else 3
        rows = _pair("images", images, root, rounds) + _pair("videos", clips, root, rounds)
        rows += _pair("videos", clips, root, rounds, "--set", "jpeg.store=false")[:1]
        rows.append(_growth(images, root, 60 if quick else 2000))
        rows.append(_first_rows(images, root))
        rows.append(_first_of_many(images, root, 20_000 if quick else 1_000_000))
        rows.append(_long_video(root, minutes=2 if quick else 30))
    return rows


def _growth(images: Path, root: Path, count: int) -> dict[str, Any]:
    """Peak memory of all processes, object store included, when there are ten times `count` images."""
    peaks = []
    for copies in (1, 10):
        folder = root / f"times-{copies}"
        folder.mkdir()
        for path in sorted(images.iterdir())[:count]:
            for copy in range(copies):
                (folder / f"{copy}-{path.name}").hardlink_to(path)
        peaks.append(vfm(folder, root / f"lake-{folder.name}")["peak_memory_mb"])
    return {
        "what": f"peak memory, {10 * count:,} images over {count:,}",
        "ratio": peaks[1] / peaks[0],
        "bar": "at most 1.15",
    }


def _first_rows(images: Path, root: Path) -> dict[str, Any]:
    """Seconds from the start of `vfm process` to the first committed rows of sixty images."""
    few = root / "few"
    few.mkdir()
    for path in sorted(images.iterdir())[:60]:
        (few / path.name).hardlink_to(path)
    times = [vfm(few, root / f"lake-few-{n}")["first_commit_s"] for n in range(3)]
    return {"what": "first committed rows, s", "ours": statistics.median(times), "bar": "at most 8"}


def _first_of_many(images: Path, root: Path, assets: int) -> dict[str, Any]:
    """Seconds from the command to the first committed frame when `assets` are registered, each a name of some image."""
    lake = Lake.create(root / "lake-many")
    uris = [path.as_uri() for path in sorted(images.iterdir())]
    names = [f"{n:032x}" for n in range(assets)]
    table = {
        "asset_id": names,
        "uri": [uris[n % len(uris)] for n in range(assets)],
        "media_type": ["image"] * assets,
        "size": pa.array([50_000] * assets, pa.int64()),
    }
    lake.append("assets", with_nulls(SCHEMAS["assets"], table))
    return {"what": f"first committed frame of {assets:,} assets, s", "ours": first_frame(lake)[0], "bar": "at most 20"}


def first_frame(lake: Lake) -> tuple[float, float]:
    """Seconds from `vfm process` to its first committed frame, and its largest memory by then, MB; it is ended after that."""
    started = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "jobs.process", "--lake", lake.root, *EMBED_ONLY],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not lake.count("frames"):
            if run.poll() is not None:
                raise RuntimeError(f"vfm process ended with {run.returncode} before its first frame")
            time.sleep(0.1)
        return time.monotonic() - started, most_memory(run.pid)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def most_memory(pid: int) -> float:
    """The largest resident memory of a process so far, MB; 0 of one that has ended. Linux."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    return 0.0


def _pair(kind: str, corpus: Path, root: Path, rounds: int, *options: str) -> list[dict[str, Any]]:
    """Median over rounds of ours over the floor, and our peak memory. The best arrangement of a first round is the floor."""
    arrangements = ARRANGEMENTS if kind == "images" else ((1, 1), (2, 1), (3, 1))
    rates = {a: bare(kind, corpus, *a) for a in arrangements}
    best = max(rates, key=rates.__getitem__)
    ours, floors, peaks = [], [], []
    for number in range(rounds):
        floors.append(bare(kind, corpus, *best))
        run = vfm(corpus, root / f"{kind}{number}{len(options)}", *options)
        ours.append(run["steady_frames_per_s"])
        peaks.append(run["peak_memory_mb"])
    ratios = [o / f for o, f in zip(ours, floors)]
    rate = {
        "what": f"{kind}{', no picture stored' if options else ''}: frames/s",
        "ours": statistics.median(ours),
        "floor": statistics.median(floors),
        "ratio": statistics.median(ratios),
        "bar": "at least 0.90",
        "note": f"floor: {best[0]} decode threads, batches of {best[1]}",
    }
    return [rate, {"what": f"{kind}: peak memory of all processes, MB", "ours": max(peaks), "bar": "at most 2500"}]


def _long_video(root: Path, minutes: int) -> dict[str, Any]:
    """Memory of a long 720p video over that of a one-minute one, MB."""
    frames = list(read_frames(real_clips()[0], 150))
    short, long = root / "short", root / "long"
    short.mkdir()
    long.mkdir()
    write_clip(short / "video.mp4", (frames[i % len(frames)] for i in range(60 * 25)), 1280, 720)
    repeat_clip(short / "video.mp4", long / "video.mp4", minutes)
    peaks = [vfm(folder, root / f"lake-{folder.name}")["peak_memory_mb"] for folder in (short, long)]
    return {
        "what": f"memory of a {minutes}-minute 720p video over a one-minute one, MB",
        "ours": peaks[1] - peaks[0],
        "bar": "at most 300",
    }


def bare(kind: str, corpus: Path, threads: int, batch: int) -> float:
    """Rate of the bare loop in a process of its own, frames/s."""
    command = [sys.executable, "-m", "jobs.bench.bare", kind, str(corpus), DEFAULT_EMBEDDER, str(threads), str(batch)]
    return float(_json(command)["rate"])


def vfm(corpus: Path, lake: Path, *options: str) -> dict[str, Any]:
    """Ingest and process of a corpus into a new lake, each a process of its own. Returns the run's summary."""
    subprocess.run(
        [sys.executable, "-m", "jobs.ingest", str(corpus), "--lake", str(lake)], check=True, capture_output=True
    )
    return _json([sys.executable, "-m", "jobs.process", "--lake", str(lake), *EMBED_ONLY, *options, "--json"])


def _json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
