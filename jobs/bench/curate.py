"""`vfm bench curate`: the algorithms against faiss and against planted truth, then whole curations: memory, the second run,
kills, and whether a balanced selection teaches more than a random one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.curate_lakes import add_vectors, vector_lake
from jobs.bench.curate_probe import long_tail_probe
from pipelines import selections
from pipelines.lake import Lake
from vfm_ops.curate import benchmark
from vfm_ops.errors import VfmError

Row = dict[str, Any]


def measure(quick: bool) -> list[Row]:
    """Rows: what, ours, reference, ratio, bar. Ratios are of CPU seconds, both sides on the same cores."""
    rows = algorithms(benchmark.run_all(quick))
    rows += long_tail_probe(quick)
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        root = Path(folder)
        rows.append(memory(root / "large", 200_000 if quick else 2_000_000))
        rows += second_run(root / "grown", 10_000 if quick else 100_000)
        rows.append(kills(root / "killed", 3_000 if quick else 20_000, 3 if quick else 10))
    return rows


def algorithms(found: dict[str, Any]) -> list[Row]:
    """What `vfm_ops.curate.benchmark.run_all` measured, as rows with the bars."""
    k, r, h, p = (found[name] for name in ("kmeans", "range_search", "hierarchy", "planted"))
    rings = found["rings"]
    rows = [
        _row("rings, KL to uniform", rings["kl"], "at most 0.030", rings["kl_random"]),
        _row("k-means, CPU s", k["cpu_s"], "at most 1.1 of faiss", k["faiss"]["cpu_s"], k["cpu_ratio"]),
        _row("k-means, inertia", k["inertia"], "at most 1.005 of faiss", k["faiss"]["inertia"], k["inertia_ratio"]),
        _row("near-duplicates, CPU s", r["cpu_s"], "at most 0.1 of faiss", r["faiss"]["cpu_s"], r["cpu_ratio"]),
        _row("near-duplicates, recall", r["recall"], "at least 0.99"),
        _row("near-duplicates, growth exponent", found["growth"]["exponent"], "at most 1.2"),
        _row("hierarchy, wall s", h["settled"]["wall_s"], "at most 0.125", 316.0, h["settled"]["wall_s"] / 316.0),
        _row("planted copies, precision", p["precision"], "at least 0.99"),
        _row("planted copies, recall", p["recall"], "at least 0.95"),
    ]
    return rows + [{"what": f"planted copies, recall of {name}", "ours": v} for name, v in p["recall_of"].items()]


def _row(what: str, ours: float, bar: str, reference: float | None = None, ratio: float | None = None) -> Row:
    return {"what": what, "ours": ours, "reference": reference, "ratio": ratio, "bar": bar}


def vfm_curate(lake: Lake, *options: str) -> dict[str, Any]:
    """One `vfm curate` in a process of its own: its summary."""
    command = [sys.executable, "-m", "jobs.curate", "--lake", lake.root, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise VfmError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def memory(root: Path, rows: int) -> Row:
    """Resident memory of all processes while a hierarchy over float16 vectors is built from Lance."""
    lake = vector_lake(root, rows)
    sets = ["deduplicate.exact=false", "deduplicate.perceptual=null", "deduplicate.semantic=null", "sample.target=0.1"]
    sets += ["cluster.levels=[1000, 100]", "cluster.iterations=4", "cluster.resamplings=1"]
    summary = vfm_curate(lake, *(part for s in sets for part in ("--set", s)))
    return {
        "what": f"memory of all processes, {rows} x 256 float16, MB",
        "ours": summary["peak_memory_mb"],
        "bar": "at most 1500",
        "note": f"{summary['seconds']} s, slowest: {max(summary['stage_seconds'], key=summary['stage_seconds'].get)}",
    }


def second_run(root: Path, rows: int) -> list[Row]:
    """A tenth more data: time of the second run over that of a full one, and whether the old items were left alone."""
    lake = vector_lake(root, rows)
    options = ("--set", "deduplicate.exact=false", "--set", "sample.target=0.2")
    first = vfm_curate(lake, *options)
    before = _fates(lake)
    add_vectors(lake, benchmark.clustered_vectors(rows // 10, seed=rows + 1), rows)
    second = vfm_curate(lake, *options)
    after = _fates(lake)
    same = sum(after.get(frame) == fate for frame, fate in before.items())
    again = vfm_curate(lake, *options, "--selection", "anew")
    work = {
        name: sum(s["stage_seconds"].values()) for name, s in (("first", first), ("second", second), ("anew", again))
    }
    return [
        {
            "what": f"second run after 10 % more, of {rows}: s",
            "ours": second["seconds"],
            "reference": again["seconds"],
            "ratio": second["seconds"] / again["seconds"],
            "bar": "at most 0.25 of a full run",
            "note": f"steps alone: {work['second']:.1f} of {work['anew']:.1f} s",
        },
        {"what": "old items whose fate and cluster stayed", "ours": same / len(before), "bar": "1"},
    ]


def _fates(lake: Lake, name: str = "curated") -> dict[str, tuple]:
    rows = selections.read_rows(lake, name, columns=["frame_id", "kept", "reason", "cluster", "rank"]).to_pylist()
    return {r["frame_id"]: (r["kept"], r["reason"], tuple(r["cluster"] or ()), r["rank"]) for r in rows}


def kills(root: Path, rows: int, times: int) -> Row:
    """A curation killed at random moments, then left alone: does it end at the selection that a calm one makes?"""
    lake = vector_lake(root, rows)
    options = ["--set", "deduplicate.exact=false", "--set", "cluster.iterations=10"]
    started = time.monotonic()
    vfm_curate(lake, *options, "--selection", "calm")
    whole, rng, killed = time.monotonic() - started, random.Random(0), 0
    for _ in range(times):
        command = [sys.executable, "-m", "jobs.curate", "--lake", lake.root, *options, "--selection", "killed"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    vfm_curate(lake, *options, "--selection", "killed")
    calm, other = _fates(lake, "calm"), _fates(lake, "killed")
    return {
        "what": f"killed {killed} times at random moments: rows equal to a calm run's",
        "ours": float(np.mean([other.get(frame) == fate for frame, fate in calm.items()])),
        "bar": "1",
    }
