"""What a corpus of any size takes: a model of few measured numbers, and how far it is from runs at 1, 2 and 4 times a size.

    seconds of a run    = start + items * core seconds an item / cores          (both from the two smaller runs)
    driver's items/s    = 1 / driver's seconds an item                          (taking results and committing them, alone)
    a node's items/s    = its cores / core seconds an item
    a node's bytes/s    = a node's items/s * (bytes read + bytes written an item)
    driver's memory     = items * bytes an item                                 (from lakes with nothing to do)

With n nodes a run goes at the least of: n times a node's rate, the driver's rate, what the nodes' networks bear. Which of these
is reached first, as nodes are added, is what saturates. Another op, or a card, changes core seconds an item alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.media import write_jpegs
from jobs.bench.process import vfm
from pipelines.lake import SCHEMAS, Lake, Lease, make_asset_id, with_nulls
from pipelines.process.commit import Committer
from vfm_ops.models.device import cpu_count

Row = dict[str, Any]
NODE_CORES = 32
NODE_BYTES_S = 1.25e9  # a network of 10 Gbit/s
CORE_HOUR = 0.05  # dollars; what a core costs on demand, about
WANTED_H = 24.0  # nodes are as many as end it within a day, where more nodes would help at all
SIZES = [10**n for n in range(6, 11)]


@dataclass(frozen=True)
class Costs:
    """What was measured. Of an item: core_s, driver_s, read and written bytes, held bytes of the driver. start_s: of a run."""

    start_s: float
    core_s: float
    driver_s: float
    item_bytes: float
    held_bytes: float

    def seconds(self, items: int, cores: int) -> float:
        """Of a run on one machine."""
        return self.start_s + items * max(self.core_s / cores, self.driver_s)

    @property
    def limits(self) -> dict[str, float]:
        """Nodes at which something is saturated."""
        node_rate = NODE_CORES / self.core_s
        limits = {"the driver's commits": 1 / self.driver_s / node_rate}
        if node_rate * self.item_bytes > NODE_BYTES_S:  # whatever the number of nodes
            limits["the nodes' networks"] = 1.0
        return limits


def predictions(folder: Path, quick: bool, rows: list[Row]) -> list[Row]:
    """Predicted over measured seconds at three sizes, and a row for each size of corpus. rows: those of the part `assets`."""
    costs, checks = _measured(folder, 100 if quick else 2000, rows)
    return [*checks, *(_predicted(costs, items) for items in SIZES)]


def _measured(folder: Path, count: int, rows: list[Row]) -> tuple[Costs, list[Row]]:
    sizes = [count, 2 * count, 4 * count]
    pictures = write_jpegs(folder / "all", sizes[-1])
    runs = []
    for size in sizes:
        part = folder / f"pictures-{size}"
        part.mkdir()
        for path in pictures[:size]:
            (part / path.name).hardlink_to(path)
        runs.append(vfm(part, folder / f"lake-{size}")["seconds"])
    slope = (runs[1] - runs[0]) / count
    read = sum(path.stat().st_size for path in pictures) / len(pictures)
    written = sum(f.stat().st_size for f in (folder / f"lake-{sizes[-1]}").rglob("*") if f.is_file()) / sizes[-1]
    held = _slope_of_memory(rows)
    costs = Costs(runs[0] - slope * count, slope * cpu_count(), driver_seconds(folder / "driver"), read + written, held)
    checks = []
    for size, seconds in zip(sizes, runs):
        said = costs.seconds(size, cpu_count())
        how = "the line is drawn through it" if size != sizes[-1] else "not used for the line"
        note = f"{said:.2f} s predicted, over {seconds:.2f} s measured; {how}"
        checks.append({"what": f"prediction, {size:,} images", "ratio": said / seconds, "note": note})
    return costs, checks


def _predicted(costs: Costs, items: int) -> Row:
    what, most = min(costs.limits.items(), key=lambda limit: limit[1])
    core_hours = items * costs.core_s / 3600
    nodes = int(np.ceil(min(max(core_hours / NODE_CORES / WANTED_H, 1.0), max(most, 1.0))))
    hours = items * max(costs.core_s / (nodes * NODE_CORES), costs.driver_s) / 3600
    dollars = nodes * NODE_CORES * hours * CORE_HOUR
    note = f"{nodes} nodes of {NODE_CORES} cores, {hours:,.1f} h, {core_hours:,.0f} core hours, ${dollars:,.0f}; "
    note += f"driver: {costs.held_bytes * items / 2**20:,.0f} MB more; saturated first: {what}, at {most:.0f} nodes"
    return {"what": f"{items:,} images", "note": note}


def _slope_of_memory(rows: list[Row]) -> float:
    """Bytes an asset that a run with nothing to do holds more in a larger lake; 0 where it was not measured."""
    for row in rows:
        if row["what"].startswith("process, nothing to do") and "MB at 4x" in row:
            return max(0.0, (row["MB at 4x"] - row["MB at 1x"]) * 2**20 / (3 * row["1x is"]))
    return 0.0


def driver_seconds(root: Path, results: int = 60, each: int = 1024) -> float:
    """Seconds of the driver for an image that workers have settled: taking their results, and commits as often as in a run."""
    lake = Lake.create(root)
    for table in SCHEMAS:
        lake.ensure(table)
    with Lease(lake, "bench"):
        made = [_result(lake, n, each) for n in range(results)]
        committer = Committer(lake, "bench", replacing=False, covers={"bench": "bench"})
        started = time.perf_counter()
        for result in made:
            committer.add(result)
        committer.flush(last=True)
        return (time.perf_counter() - started) / (results * each)


def _result(lake: Lake, number: int, count: int) -> dict[str, Any]:
    """What a worker gives of a unit of images."""
    ids = [make_asset_id(f"/bench/{number * count + i}.jpg") for i in range(count)]
    frames = {"frame_id": [f"{i}:0" for i in ids], "asset_id": ids, "run_key": ["bench.1"] * count}
    written = lake.write_fragments("frames", with_nulls(SCHEMAS["frames"], frames))
    outcome = {
        "run_key": "bench.1",
        "recipe": "bench",
        "attempt": 1,
        "etag": None,
        "probe": None,
        "op": None,
        "wanted": None,
    }
    outcome |= {"frames": 1, "stage": None, "dropped": {}, "known": False, "journal": None}
    outcomes = [json.dumps({**outcome, "asset_id": i, "asset_no": number * count + n}) for n, i in enumerate(ids)]
    return {
        "fragments": json.dumps({"frames": written}),
        "rows": json.dumps({"frames": dict.fromkeys(ids, 1)}),
        "dropped": "{}",
        "failed": 0,
        "outcomes": outcomes,
        "stats": json.dumps({"stages": [], "deaths": 0, "actor": "bench", "cpu": 0.0}),
    }
