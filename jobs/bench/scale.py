"""`vfm bench scale`: how time and memory grow with a lake, at one, two and four times a size, and what a corpus of any size
takes by that (`scale_model`).

Assets are the rows of a parquet file that repeats one small picture; vectors are synthetic. Every command runs in a process of
its own, whose largest resident memory the kernel tells.
"""

from __future__ import annotations

import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.bench.curate_lakes import vector_lake
from jobs.bench.process import EMBED_ONLY, first_frame, most_memory
from jobs.bench.scale_model import predictions
from pipelines.lake import SCHEMAS, Lake, Lease, with_nulls
from vfm_ops.errors import VfmError

Row = dict[str, Any]
Measured = Callable[[Path, int], dict[str, tuple[float, float]]]
DIM = 64
ROW_GROUP = 100_000
BARS = {
    "first committed row": "at most 20 s, 1500 MB, at 100 million",
    "process, nothing to do": "at most 60 s, 1500 MB, at 100 million",
    **dict.fromkeys(("ingest", "ingest, nothing new", "verify"), "at most 1500 MB at 100 million"),
}
CURATION = (
    "deduplicate.exact=false", "deduplicate.perceptual.radius=0", "deduplicate.semantic=null", "sample.target=0.1",
    "cluster.levels=[1000, 100]", "cluster.iterations=4", "cluster.resamplings=1",
)  # fmt: skip


def measure(quick: bool, kept: Path | None = None, largest: int | None = None) -> list[Row]:
    """Rows: part, what, how many 1x is, seconds at 1x, 2x and 4x, exponent, MB, bar, note.

    kept: as `jobs.bench.curate.measure`. largest: a lake of so many assets is measured, too, and one of a tenth the vectors.
    """
    from jobs.bench import Kept

    file = Kept(kept, "scale", quick)
    sizes = {f"{times}x": times * (20_000 if quick else 1_000_000) for times in (1, 2, 4)}
    parts: dict[str, Callable[[Path], list[Row]]] = {
        "assets": lambda folder: _growth(folder, sizes, assets_at),
        "vectors": lambda folder: _growth(folder, sizes, vectors_at),
        "predicted": lambda folder: predictions(folder, quick, file.rows),
    }
    if largest is not None:
        parts["largest"] = lambda folder: _largest(folder, largest)
    return file.measure(parts)


def _growth(folder: Path, sizes: dict[str, int], at: Measured) -> list[Row]:
    """A row a command: seconds at each size, the exponent by which they grow, and the largest memory."""
    found = {name: at(folder / name, size) for name, size in sizes.items()}
    first, *_, last = sizes
    rows = []
    for what, (seconds, memory) in found[first].items():
        times = {name: by[what][0] for name, by in found.items()}
        exponent = math.log(times[last] / seconds) / math.log(sizes[last] / sizes[first])
        grown = {"exponent": exponent, f"MB at {first}": memory, f"MB at {last}": found[last][what][1]}
        rows.append({"what": what, f"{first} is": sizes[first], **times, **grown, "bar": BARS.get(what, "")})
    return rows


def _largest(folder: Path, assets: int) -> list[Row]:
    """A row a command: seconds and memory, in the columns of the smallest size."""
    found = {assets: assets_at(folder / "assets", assets), assets // 10: vectors_at(folder / "vectors", assets // 10)}
    return [
        {"what": what, "1x is": size, "1x": seconds, "MB at 1x": memory, "bar": BARS.get(what, "")}
        for size, by in found.items()
        for what, (seconds, memory) in by.items()
    ]


def assets_at(folder: Path, count: int) -> dict[str, tuple[float, float]]:
    """(seconds, MB) of commands on a lake of so many assets, each the same picture of 32 x 32 pixels."""
    folder.mkdir()
    source, lake = folder / "pictures.parquet", Lake(str(folder / "lake"))
    _write_pictures(source, count)
    found = {
        "ingest": timed("ingest", str(source), "--lake", lake.root),
        "ingest, nothing new": timed("ingest", str(source), "--lake", lake.root),
        "first committed row": first_frame(lake),
        "one commit": _one_commit(lake),
    }
    _settle(lake)
    found["process, after a kill, nothing to do"] = timed("process", "--lake", lake.root, *EMBED_ONLY)
    found["process, nothing to do"] = timed("process", "--lake", lake.root, *EMBED_ONLY)
    found["verify"] = timed("verify", "--lake", lake.root)
    return found


def vectors_at(folder: Path, count: int) -> dict[str, tuple[float, float]]:
    """(seconds, MB) of commands on a lake of so many frames with a vector and no picture."""
    lake = vector_lake(folder, count, DIM)
    sets = [word for one in CURATION for word in ("--set", one)]
    found = {"index": timed("index", "--lake", lake.root, "--keep-days", "0")}
    found["search"] = timed("search", "--lake", lake.root, "--frame", some_frame(lake), "-k", "10")
    found["curate"] = timed("curate", "--lake", lake.root, *sets)
    return found


def timed(*argv: str) -> tuple[float, float]:
    """Seconds of a command, and its largest resident memory, MB. Linux."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        run = subprocess.Popen([sys.executable, "-m", "jobs.cli", *argv], stdout=said, stderr=subprocess.STDOUT)
        memory = 0.0
        while run.poll() is None:
            memory = max(memory, most_memory(run.pid))
            time.sleep(0.05)
        if run.returncode not in (0, 1):
            said.seek(0)
            raise VfmError(f"vfm {argv[0]} ended with {run.returncode}: {said.read()[-300:].decode(errors='replace')}")
    return time.monotonic() - started, memory


def _write_pictures(path: Path, count: int) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), (40, 90, 160)).save(encoded, "JPEG")
    picture = pa.array([encoded.getvalue()], pa.binary())
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(ROW_GROUP, np.int32)), picture)
    table = pa.table({"image": column.cast(pa.binary())})
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, count, ROW_GROUP):
            writer.write_table(table.slice(0, min(ROW_GROUP, count - start)))


def _one_commit(lake: Lake) -> tuple[float, float]:
    """Seconds of a commit of one row to `assets`, the median of five, which are removed again."""
    times = []
    with Lease(lake, "bench"):
        for i in range(5):
            row = {"asset_id": [f"bench{i}"], "uri": ["bench"]}
            started = time.monotonic()
            lake.append("assets", with_nulls(SCHEMAS["assets"], row))
            times.append(time.monotonic() - started)
        lake.delete("assets", "asset_id", [f"bench{i}" for i in range(5)])
    return float(np.median(times)), 0.0


def _settle(lake: Lake) -> None:
    """Says that all assets are done, with no frame each."""
    from pipelines.process.recipe import load_recipe

    recipe = load_recipe(None, EMBED_ONLY[1::2]).hash
    with Lease(lake, "bench"):
        for table in ("frames", "ledger", "quarantine", "coverage"):
            if lake.count(table):
                lake.change(table, "empty", lambda ds: ds.delete("true"))
        lake.ensure("ledger")
        for batch in lake.scan("assets", ["asset_id", "asset_no"], batch_size=1 << 20):
            n = batch.num_rows
            rows = {name: [value] * n for name, value in (("run_key", f"{recipe}.1"), ("recipe", recipe))}
            rows |= {name: pa.array(np.zeros(n, np.int64)) for name in ("frames", "shots")}
            lake.append(
                "ledger",
                with_nulls(SCHEMAS["ledger"], {**rows, "asset_id": batch["asset_id"], "asset_no": batch["asset_no"]}),
            )


def some_frame(lake: Lake) -> str:
    """The id of a frame."""
    return str(lake.table("frames").head(1, columns=["frame_id"])["frame_id"][0].as_py())
