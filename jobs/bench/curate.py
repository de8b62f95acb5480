"""`vfm bench curate`: the algorithms against faiss and against planted truth, then whole curations: memory, the second run,
kills, and whether a balanced selection teaches more than a random one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench import curate_algorithms
from jobs.bench.curate_lakes import add_vectors, vector_lake
from jobs.bench.curate_probe import long_tail_probe
from pipelines.curation import selections
from pipelines.lake import Lake
from vfm_ops.errors import VfmError

Row = dict[str, Any]


def measure(quick: bool, kept: Path | None = None) -> list[Row]:
    """Rows: part, what, ours, reference, ratio, bar. Ratios are of CPU seconds, both sides on the same cores.

    quick: at a tenth of the size and less, to see that all of it runs. kept: JSON file that gets each part's rows as soon as
    they are there; parts that it already holds, measured on this machine, are not measured again.
    """
    from jobs.bench import Kept

    return Kept(kept, "curate", quick).measure({part: partial(work, quick) for part, work in PARTS.items()})


def _row(
    what: str, ours: float, bar: str, reference: float | None = None, ratio: float | None = None, note: str = ""
) -> Row:
    return {"what": what, "ours": ours, "reference": reference, "ratio": ratio, "bar": bar, "note": note}


def rings(quick: bool, folder: Path) -> list[Row]:
    """Does a hierarchy with resampling balance rings of very unequal mass?"""
    found = curate_algorithms.rings_balance(2 if quick else 10)
    return [_row("KL to uniform", found["kl"], "at most 0.030", found["kl_random"], note="reference: random items")]


def kmeans(quick: bool, folder: Path) -> list[Row]:
    """k-means against faiss's, with the same number of iterations over the same rows."""
    found = curate_algorithms.kmeans_against_faiss(_size(quick), k=100 if quick else 1000)
    theirs = found["faiss"]
    return [
        _row("CPU s", found["cpu_s"], "at most 1.1 of faiss", theirs["cpu_s"], found["cpu_ratio"]),
        _row("inertia", found["inertia"], "at most 1.005 of faiss", theirs["inertia"], found["inertia_ratio"]),
    ]


def near_duplicates(quick: bool, folder: Path) -> list[Row]:
    """The search for pairs against faiss's exact range search."""
    found = curate_algorithms.range_search_against_faiss(_size(quick))
    theirs = found["faiss"]["cpu_s"]
    note = "faiss: the first 4,000 queries, scaled"
    return [
        _row("CPU s", found["cpu_s"], "at most 0.1 of faiss", theirs, found["cpu_ratio"], note),
        _row("recall", found["recall"], "at least 0.99"),
    ]


def growth(quick: bool, folder: Path) -> list[Row]:
    """How the cost of the same search grows with the rows."""
    found = curate_algorithms.search_growth((5_000, 40_000) if quick else (50_000, 400_000))
    small, large = found["cpu_s"]
    note = f"{small:.1f} and {large:.1f} CPU s for {found['rows'][0]} and {found['rows'][1]} rows"
    return [_row("exponent of rows", found["exponent"], "at most 1.2", note=note)]


def hierarchy(quick: bool, folder: Path) -> list[Row]:
    """Time to build two levels; the yardstick is what the reference code takes on a machine of this kind, 316 s."""
    found = curate_algorithms.hierarchy_time(_size(quick), levels=(200, 20) if quick else (2000, 200))
    rows = []
    for name in ("settled", "all_iterations"):
        wall = found[name]["wall_s"]
        note = f"{found[name]['cpu_s']:.1f} CPU s"
        rows.append(_row(f"{name.replace('_', ' ')}, wall s", wall, "at most 0.125", 316.0, wall / 316.0, note))
    return rows


def planted(quick: bool, folder: Path) -> list[Row]:
    """Copies planted in real images: are they found, and only they?"""
    found = curate_algorithms.planted_duplicates(500 if quick else 5000, 20 if quick else 100)
    rows = [_row("precision", found["precision"], "at least 0.99"), _row("recall", found["recall"], "at least 0.95")]
    return rows + [_row(f"recall of {name}", share, "") for name, share in found["recall_of"].items()]


def _size(quick: bool) -> int:
    return 20_000 if quick else 200_000


def vfm_curate(lake: Lake, *options: str) -> dict[str, Any]:
    """One `vfm curate` in a process of its own: its summary."""
    command = [sys.executable, "-m", "jobs.curate", "--lake", lake.root, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise VfmError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def memory(quick: bool, folder: Path) -> list[Row]:
    """Resident memory of all processes while a hierarchy over float16 vectors is built from Lance."""
    rows = 200_000 if quick else 2_000_000
    lake = vector_lake(folder / "lake", rows)
    sets = ["deduplicate.exact=false", "deduplicate.perceptual=null", "deduplicate.semantic=null", "sample.target=0.1"]
    sets += ["cluster.levels=[1000, 100]", "cluster.iterations=4", "cluster.resamplings=1"]
    summary = vfm_curate(lake, *(part for s in sets for part in ("--set", s)))
    stages, peak = summary["stage_seconds"], summary["peak_memory_mb"]
    note = f"{summary['seconds']} s, slowest: {max(stages, key=stages.get)}"
    return [_row(f"{rows} x 256 float16, all processes, MB", peak, "at most 1500 in workers", note=note)]


def second_run(quick: bool, folder: Path) -> list[Row]:
    """A tenth more data: time of the second run over that of a full one, and whether the old items were left alone."""
    rows = 10_000 if quick else 100_000
    lake = vector_lake(folder / "lake", rows)
    options = ("--set", "deduplicate.exact=false", "--set", "sample.target=0.2")
    vfm_curate(lake, *options)
    before = _decisions(lake)
    add_vectors(lake, curate_algorithms.clustered_vectors(rows // 10, seed=rows + 1), rows)
    second = vfm_curate(lake, *options)
    after = _decisions(lake)
    same = sum(after.get(frame) == decided for frame, decided in before.items())
    full = vfm_curate(lake, *options, "--selection", "anew")
    steps = [sum(summary["stage_seconds"].values()) for summary in (second, full)]
    note = f"steps alone: {steps[0]:.1f} of {steps[1]:.1f} s"
    ratio = second["seconds"] / full["seconds"]
    return [
        _row(f"{rows // 10} more: s", second["seconds"], "at most 0.25 of a full run", full["seconds"], ratio, note),
        _row("old items whose decision and cluster stayed", same / len(before), "1"),
    ]


def _decisions(lake: Lake, name: str = "curated") -> dict[str, tuple]:
    rows = selections.read_rows(lake, name, columns=["frame_id", "kept", "reason", "cluster", "rank"]).to_pylist()
    return {r["frame_id"]: (r["kept"], r["reason"], tuple(r["cluster"] or ()), r["rank"]) for r in rows}


def workers(quick: bool, folder: Path) -> list[Row]:
    """Several threads, and Ray actors: share of rows equal to those of one thread."""
    lake = vector_lake(folder / "lake", 3_000 if quick else 20_000)
    options = ("--set", "deduplicate.exact=false", "--set", "cluster.iterations=10")
    vfm_curate(lake, *options, *_resources("backend=local", "workers=1"), "--selection", "alone")
    rows = []
    for name, sets in {
        "2 threads": ["backend=local", "workers=2"],
        "3 threads": ["backend=local", "workers=3"],
        "2 Ray actors": ["backend=ray", "workers=2"],
    }.items():
        chosen = name.replace(" ", "-")
        vfm_curate(lake, *options, *_resources(*sets), "--selection", chosen)
        rows.append(_row(f"rows equal with {name}", _agreement(lake, "alone", chosen), "1"))
    return rows


def _resources(*sets: str) -> list[str]:
    return [word for one in sets for word in ("--set", f"resources.{one}")]


def _agreement(lake: Lake, one: str, other: str) -> float:
    """Share of one selection's rows that another has too."""
    a, b = _decisions(lake, one), _decisions(lake, other)
    return float(np.mean([b.get(frame) == decided for frame, decided in a.items()])) if len(a) == len(b) else 0.0


def kills(quick: bool, folder: Path) -> list[Row]:
    """A curation killed at random moments, then left alone: does it end at the selection that a calm one makes?"""
    lake, times = vector_lake(folder / "lake", 3_000 if quick else 20_000), 3 if quick else 10
    options = ["--set", "deduplicate.exact=false", "--set", "cluster.iterations=10"]
    started = time.monotonic()
    vfm_curate(lake, *options, "--selection", "calm")
    whole, rng, killed = time.monotonic() - started, random.Random(0), 0
    while killed < times:
        # --full: one that was left alone for long enough to finish does not make the rest find that nothing is new.
        arguments = ["--lake", lake.root, *options, "--selection", "killed", "--full"]
        command = [sys.executable, "-m", "jobs.curate", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    vfm_curate(lake, *options, "--selection", "killed")
    return [_row(f"rows equal after {killed} kills at random moments", _agreement(lake, "calm", "killed"), "1")]


PARTS: dict[str, Callable[[bool, Path], list[Row]]] = {
    "rings": rings,
    "k-means": kmeans,
    "near-duplicates": near_duplicates,
    "growth": growth,
    "hierarchy": hierarchy,
    "planted copies": planted,
    "long tail": lambda quick, folder: long_tail_probe(quick),
    "memory": memory,
    "second run": second_run,
    "workers": workers,
    "kills": kills,
}
